#!/usr/bin/env bash
# One lipray run on Ray across the nodes of a Slurm job. From a folder that all nodes see:
#     sbatch --nodes=4 --time=08:00:00 slurm.sh estimate MODEL --store /shared/runs --run-id NAME --budget 7h
# The same command again goes on where the run was ended, and so does Slurm itself after a node was lost (--requeue).
#SBATCH --job-name=lipray
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=lipray-%j.log
set -euo pipefail

# What Ray is given on every node; `ray symmetric-run` ends all of a user's Ray on a node, hence --exclusive.
environment=${LIPRAY_ENVIRONMENT:-${SLURM_SUBMIT_DIR:-$PWD}/.venv}
object_store=${LIPRAY_OBJECT_STORE:-2147483648}
port=${LIPRAY_PORT:-6379}

[[ -n ${SLURM_JOB_ID:-} ]] || { echo "error: this is a batch script; submit it with sbatch" >&2; exit 2; }
[[ -x $environment/bin/lipray ]] ||
    { echo "error: there is no lipray in $environment; name its environment in LIPRAY_ENVIRONMENT" >&2; exit 2; }
for needed in --store --run-id; do
    [[ " $* " == *" $needed"[\ =]* ]] ||
        { echo "error: $needed is needed, so that a run that was ended can go on" >&2; exit 2; }
done

export PATH=$environment/bin:$PATH
export RAY_USAGE_STATS_ENABLED=0 RAY_task_oom_retries=0 RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=${RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT:-300}
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 RAYON_NUM_THREADS=1
# A token of this job alone, which srun hands to the nodes; it is in no file.
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
# Short, because sockets lie in it, and this job's own, because others may have left a /tmp/ray behind.
export RAY_TMPDIR=${LIPRAY_TMPDIR:-/tmp}/lipray-$SLURM_JOB_ID

# Batch scripts run on the first node, which will be the head. As a number, because nodes may know themselves by 127.0.1.1.
address=${LIPRAY_HEAD_IP:-$(hostname -I | cut -d' ' -f1)}:$port

# On the head: the driver, whose process id the trap below needs.
# shellcheck disable=SC2016
driver='echo $$ >"$RAY_TMPDIR/driver.pid"; exec python -m lipray "$@" --address auto'
# On every node: Ray, with all CPUs but the driver's, and seven tenths of the memory for tasks; no dashboard on the head.
# shellcheck disable=SC2016
node='
mkdir -p "$RAY_TMPDIR"
cpus=${SLURM_CPUS_ON_NODE:-$(nproc)}
head=
[ "$SLURM_NODEID" -ne 0 ] || { cpus=$((cpus > 1 ? cpus - 1 : 1)); head=--include-dashboard=false; }
memory=$(awk "/^MemTotal:/ { printf \"%.0f\", \$2 * 1024 * 0.7 }" /proc/meminfo)
address=$1 object_store=$2 driver=$3
shift 3
exec ray symmetric-run --address "$address" --min-nodes "$SLURM_JOB_NUM_NODES" --num-cpus="$cpus" \
    --memory="$memory" --object-store-memory="$object_store" $head \
    -- bash -c "$driver" lipray "$@"'

srun --cpu-bind=none bash -c "$node" node "$address" "$object_store" "$driver" "$@" &
step=$!

# Slurm warns this script before the time is up; the driver then writes the best bound it has, and the rest ends. A
# signal ends a wait, not the step.
trap 'told=1; echo "told to stop: the driver writes what it has" >&2; kill -TERM "$(cat "$RAY_TMPDIR/driver.pid")"' TERM
told=1
while [[ -n $told ]]; do
    told='' code=0
    wait "$step" || code=$?
done
rm -rf "$RAY_TMPDIR"
exit "$code"
