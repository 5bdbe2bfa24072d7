#!/bin/bash
# Trains on the GPUs of several machines under Slurm: one torchrun on each machine, one worker on each of its GPUs.
#
#   sbatch --nodes=2 --gpus-per-node=2 slurm.sh --config cifar10/concurrent3_lr1e-4 --parts.num 4 --run.dir /shared/run
#
# run.dir must lie on a file system that all machines share. A job that is preempted, or whose machine fails, is put back
# into the queue and resumes from its newest checkpoint.
#SBATCH --job-name=pipeflow
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
set -euo pipefail

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
workers=${WORKERS_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# After a SIGTERM workers get this many seconds to save the run.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=90
# The network that the workers are to use, such as ib0: torch.distributed asks nobody who connects.
if [[ -n ${INTERFACE:-} ]]; then
    export GLOO_SOCKET_IFNAME=$INTERFACE NCCL_SOCKET_IFNAME=$INTERFACE
fi

# Ports differ by job, so that two jobs on one machine do not meet.
srun --kill-on-bad-exit=1 torchrun \
    --nnodes="$SLURM_JOB_NUM_NODES" \
    --nproc-per-node="$workers" \
    --rdzv-backend=c10d \
    --rdzv-endpoint="$head:$((20000 + SLURM_JOB_ID % 10000))" \
    --rdzv-id="$SLURM_JOB_ID" \
    --max-restarts=0 \
    -m pipeflow.launch "$@" &
srun=$!

# 120 s before the time is over, or when the job is preempted, Slurm sends SIGTERM to this script.
requeue() {
    kill -TERM "$srun" 2>/dev/null || true
    wait "$srun" || true
    scontrol requeue "$SLURM_JOB_ID"
}
trap requeue TERM
wait "$srun"
