
RUN_DIR=@@{run_dir}
JOB_DIR=@@{job_dir}
FIRST=@@{first}
AGAIN=@@{again}
PACELINE=@@{paceline}
CONTAINER=@@{container}

set -uo pipefail
mkdir -p "$RUN_DIR" "$JOB_DIR"@@{make_home}
cd @@{cwd} || exit 3
@@{setup}
say() {
    printf '%(%H:%M:%S)T %s\n' -1 "$*"
}

HEAD=${NODES[0]}
background=() # what keeps Ray up: a step for each node
main=

finish() { # whatever happened: no step outlives the job, and what they logged is kept
    status=$?
    trap '' TERM INT USR1
    trap - EXIT
    if [ "${#background[@]}" -gt 0 ]; then
        say "stopping Ray"
        kill -TERM "${background[@]}" 2>/dev/null
        for _ in $(seq 40); do
            kill -0 "${background[@]}" 2>/dev/null || break
            sleep 0.5
        done
        kill -KILL "${background[@]}" 2>/dev/null
        collect
    fi
    describe_job >"$JOB_DIR/job-$JOB.txt" 2>&1
    say "the job ends with status $status"
    exit "$status"
}

stop() { # the time limit is near, or the job is being taken away
    say "told to stop: the run ends in order"
    if [ -n "$main" ]; then
        kill -TERM "$main" 2>/dev/null
        wait "$main"
    fi
    exit 3
}
trap finish EXIT
trap stop TERM INT USR1

say "job $JOB on ${NODES[*]}${SLURM_RESTART_COUNT:+, restart $SLURM_RESTART_COUNT}"
@@{ray}
if [ -f "$RUN_DIR/manifest.json" ]; then
    say "resuming the run in $RUN_DIR"
    COMMAND=("${AGAIN[@]}")
else
    COMMAND=("${FIRST[@]}")
fi
at "$HEAD"
"${AT[@]}" @@{in_container}"${PACELINE[@]}" "${COMMAND[@]}" &
main=$!
wait "$main"
