#!/bin/bash
# @@{what}
# Written by `paceline launch pbs`; read it, change it, submit it as often as it takes:
#
#   submit   qsub @@{script}
#   follow   paceline launch follow @@{job_dir}
#
# Submitted again, or rerun, it resumes the run from what is on disk.
#
@@{directives}

# What differs between schedulers: the job's name, its nodes, and how one reaches them.
JOB=${PBS_JOBID%%.*}
mapfile -t NODES < <(awk '!seen[$0]++' "$PBS_NODEFILE")

at() { # NODE: sets AT, which put before a command runs it there; this is the first node
    local index
    AT=()
    for index in "${!NODES[@]}"; do
        if [ "$index" -gt 0 ] && [ "${NODES[index]}" = "$1" ]; then
            AT=(pbsdsh -n "$index" -- /usr/bin/env --chdir="$PWD" "PATH=$PATH" "HOME=$HOME"
                "LD_LIBRARY_PATH=${LD_LIBRARY_PATH-}" "PYTHONPATH=${PYTHONPATH-}"
                "RAY_AUTH_MODE=${RAY_AUTH_MODE-}" "RAY_AUTH_TOKEN_PATH=${RAY_AUTH_TOKEN_PATH-}")
        fi
    done
}

address_of() { # NODE: its name is its address
    printf '%s\n' "$1"
}

describe_job() {
    qstat -f "$PBS_JOBID"
}
