
# Ray: its head on the first node, a worker on every other, one step each, logged each.
RAY=@@{ray}
RAY_PORT=@@{port}
RAY_TEMP=/tmp/paceline-ray-$JOB # short: Ray's sockets lie in it
RAY_OPTIONS=(--disable-usage-stats --block --object-store-memory=100000000)

ip_of() { # NODE: as a number, which Ray wants of each node
    getent ahostsv4 "$(address_of "$1")" | awk 'NR == 1 { print $1 }'
}

start_ray() { # NODE NAME OPTIONS...
    local node=$1 log=$JOB_DIR/ray-$2-$1.log
    shift 2
    say "Ray on $node, logged in $log"
    at "$node"
    "${AT[@]}" @@{in_container}"${RAY[@]}" start "${RAY_OPTIONS[@]}" \
        --node-ip-address="$(ip_of "$node")" "$@" >"$log" 2>&1 &
    background+=($!)
}

ray_nodes() { # how many have joined
    at "$HEAD"
    "${AT[@]}" @@{in_container}"${RAY[@]}" status --address "$RAY_ADDRESS" 2>/dev/null |
        grep -c '^ *[0-9]* node_'
}

collect() { # Ray's own logs of each node, and nothing of it left behind there
    local node
    for node in "${NODES[@]}"; do
        at "$node"
        "${AT[@]}" tar -C "$RAY_TEMP" -czhf "$JOB_DIR/ray-session-$JOB-$node.tar.gz" \
            --ignore-failed-read session_latest/logs ||
            say "Ray's logs of $node could not be collected"
    done
    for node in "${NODES[@]}"; do
        at "$node"
        "${AT[@]}" rm -rf "$RAY_TEMP"
    done
}

# The cluster answers to this job alone: whoever else is on its nodes lacks the token.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$JOB_DIR/ray-token
(umask 077 && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$RAY_AUTH_TOKEN_PATH")
RAY_ADDRESS=$(ip_of "$HEAD"):$RAY_PORT
export RAY_ADDRESS
start_ray "$HEAD" head --head --port="$RAY_PORT" --temp-dir="$RAY_TEMP" --include-dashboard=false
for ((tries = 0; $(ray_nodes) < 1; tries++)); do
    if [ "$tries" -ge @@{tries} ]; then
        say "Ray's head does not come up: see $JOB_DIR/ray-head-$HEAD.log"
        exit 3
    fi
    sleep 2
done
for node in "${NODES[@]:1}"; do
    start_ray "$node" worker --address="$RAY_ADDRESS"
done
for ((tries = 0; $(ray_nodes) < ${#NODES[@]}; tries++)); do
    if [ "$tries" -ge @@{tries} ]; then
        say "$(ray_nodes) of ${#NODES[@]} nodes have joined Ray: see $JOB_DIR/ray-worker-*.log"
        exit 3
    fi
    sleep 2
done
say "Ray is up on ${#NODES[@]} nodes"
at "$HEAD"
"${AT[@]}" @@{in_container}"${PACELINE[@]}" system --ray auto --out "$JOB_DIR/system.json" \
    >"$JOB_DIR/system.txt" 2>&1 || say "the hosts, and what is open of them: $JOB_DIR/system.txt"
