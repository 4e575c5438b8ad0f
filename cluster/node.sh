#!/usr/bin/env bash
# Starts Ray on this machine, in the background, or ends what it started; nothing else on the machine is touched.
set -euo pipefail

usage() {
    cat >&2 <<'TEXT'
usage: node.sh head | worker HEAD | stop

head         start the head: the driver's machine, which offers no CPUs to tasks
worker HEAD  start a worker of the head at this host
stop         end what head or worker started

LIPRAY_ENVIRONMENT   (variable) the virtual environment; default: env beside this script
LIPRAY_STATE         (variable) folder of the process id and the log; default: state beside this script
LIPRAY_NODE_IP       (variable) this machine's address; default: the one it reaches other networks from
LIPRAY_OBJECT_STORE  (variable) bytes of the object store; default 2 GiB
LIPRAY_MEMORY        (variable) bytes that tasks may reserve on a worker; default: seven tenths of the machine, as
                     Ray's autoscaler expects of one
TEXT
    exit 2
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
state=${LIPRAY_STATE:-$here/state}
export PATH="${LIPRAY_ENVIRONMENT:-$here/env}/bin:$PATH"
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 RAY_task_oom_retries=0
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 RAYON_NUM_THREADS=1

# The process that this script started, if it still runs; ids are given out anew, so its command is looked at too.
running() {
    [[ -f $state/pid ]] || return 1
    { tr '\0' ' ' <"/proc/$(cat "$state/pid")/cmdline"; } 2>/dev/null | grep -q 'ray start .*--block'
}

stop() {
    running || return 0
    local pid
    pid=$(cat "$state/pid")
    # Ray's own process ends its children; thirty seconds are ten times what that takes.
    kill -TERM "$pid"
    for _ in $(seq 300); do
        running || return 0
        sleep 0.1
    done
    kill -KILL -- "-$pid"
}

# start MEMORY OPTION...
start() {
    local memory=$1
    shift
    stop
    [[ -n ${RAY_AUTH_TOKEN:-} || -s ${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token} ]] ||
        { echo "error: there is no token at ${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}" >&2; exit 1; }
    mkdir -p "$state"
    ulimit -n 65536 2>/dev/null || ulimit -n "$(ulimit -Hn)"
    local log=$state/ray.log address=()
    [[ -z ${LIPRAY_NODE_IP:-} ]] || address=("--node-ip-address=$LIPRAY_NODE_IP")
    setsid ray start --block "${address[@]}" --memory="$memory" \
        --object-store-memory="${LIPRAY_OBJECT_STORE:-2147483648}" "$@" >"$log" 2>&1 </dev/null &
    echo $! >"$state/pid"
    for _ in $(seq 600); do
        grep -qs 'Ray runtime started' "$log" && return 0
        kill -0 "$(cat "$state/pid")" 2>/dev/null || break
        sleep 0.2
    done
    tail -n 20 "$log" >&2
    echo "error: Ray did not start; its log is $log" >&2
    exit 1
}

case "${1:-}:$#" in
head:1)
    # The launcher leaves its configuration here, for the autoscaler that starts the workers.
    config=$HOME/ray_bootstrap_config.yaml
    [[ -f $config ]] && autoscaling=("--autoscaling-config=$config") || autoscaling=()
    # Little memory is offered, so that no plan counts on that of a machine which runs no tasks.
    start 1073741824 --head --port=6379 --dashboard-host=127.0.0.1 --num-cpus=0 "${autoscaling[@]}"
    ;;
worker:2)
    memory=$(awk '/^MemTotal:/ { printf "%.0f", $2 * 1024 * 0.7 }' /proc/meminfo)
    start "${LIPRAY_MEMORY:-$memory}" --address="$2:6379"
    ;;
stop:1) stop ;;
*) usage ;;
esac
