#!/usr/bin/env bash
# A training on a cluster that requeues itself until it is done:
#     sbatch recipes/slurm.sh --mode speech --exp_name long --pretrained hub
# More nodes: sbatch --nodes=2 recipes/slurm.sh ... (features and logs must be on a file system of all nodes).
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -u
gpus=${SLURM_GPUS_ON_NODE:-1}
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# Five minutes before the time is over, or when the job is preempted: ask for a stop, which saves;
# then the job goes back into the queue, and its next start goes on from there. torchrun ends a stop
# with a traceback about the signal and exit code 1, like any failure: so this asks nobody for a code.
stop() {
  trap '' USR1 TERM
  scancel --signal=TERM "$SLURM_JOB_ID.0"
  wait "$training"
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
}
trap stop USR1 TERM

export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # srun does not take it over by itself
srun --kill-on-bad-exit=1 torchrun \
  --nnodes="$SLURM_NNODES" --nproc_per_node="$gpus" \
  --rdzv_backend=c10d --rdzv_endpoint="$head:$((10000 + SLURM_JOB_ID % 20000))" --rdzv_id="$SLURM_JOB_ID" \
  train.py "$@" --resume --num_workers $((SLURM_CPUS_PER_TASK / gpus)) &
training=$!
wait "$training"
