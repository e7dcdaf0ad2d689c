#!/usr/bin/env bash
# A run over SLURM nodes, one launcher a node; requeued when it is pre-empted or its time is up.
#   sbatch --nodes 4 --gpus-per-node 8 recipes/launch/slurm.sh recipes/dpo.py --config my.yaml
# Run from the root of the checkout, which every node must see, like the models, the data and the
# run directory. ACCELERATE_CONFIG names another file of ds_configs/ than that of ZeRO-2.
#SBATCH --job-name=align
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# Two minutes before the end this shell (B:) gets SIGUSR1: time for a step and a checkpoint.
#SBATCH --signal=B:USR1@120
set -uo pipefail
. recipes/launch/wait.sh || exit 2 # SLURM runs a copy of this script: from the root, not from beside it
(($# > 0)) || { echo "usage: sbatch recipes/launch/slurm.sh recipes/NAME.py ARGUMENTS" >&2; exit 2; }

config=${ACCELERATE_CONFIG:-ds_configs/accelerate_zero2.yaml}
per_node=${SLURM_GPUS_ON_NODE:-${PROCESSES_PER_NODE:-1}}
processes=$((SLURM_NNODES * per_node))
address=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# A port that another job on the node will hardly have.
port=$((20000 + SLURM_JOB_ID % 20000))
echo "$SLURM_NNODES nodes x $per_node = $processes processes, rendezvous $address:$port"

# SLURM_NODEID is known only inside a task, hence the quotes around the inner command.
launch='exec accelerate launch --config_file "$0" --num_machines "$SLURM_NNODES" \
  --machine_rank "$SLURM_NODEID" --num_processes "$1" --main_process_ip "$2" \
  --main_process_port "$3" --deepspeed_multinode_launcher standard "${@:4}"'
srun --kill-on-bad-exit=0 bash -c "$launch" "$config" "$processes" "$address" "$port" "$@" &

# The recipe ends with 75, which the launcher turns into 1. So this shell remembers.
until_ended $! USR1 TERM
if [ -n "$stopped" ] && [ "$code" -ne 0 ]; then
  echo "stopped with a checkpoint; requeued: train.resume: auto goes on from it"
  scontrol requeue "$SLURM_JOB_ID"
  exit 75
fi
exit "$code"
