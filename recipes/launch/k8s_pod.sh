#!/usr/bin/env bash
# What a pod of k8s.yaml runs: the launcher of its machine, and an exit code that the Job understands.
# accelerate ends with 1 whatever the recipe ended with, so the codes are read from what it says:
# 75 stopped with a checkpoint, 2 wrong input.
set -uo pipefail
. recipes/launch/wait.sh || exit 2 # like all paths here, from the root of the checkout
config=${ACCELERATE_CONFIG:-ds_configs/accelerate_zero2.yaml}
said=$(mktemp)
accelerate launch --config_file "$config" --num_machines "$MACHINES" \
  --machine_rank "$JOB_COMPLETION_INDEX" --num_processes $((MACHINES * GPUS)) \
  --main_process_ip "${MAIN_ADDRESS:-align-0.align}" --main_process_port 29500 \
  --deepspeed_multinode_launcher standard \
  "$@" 2> >(tee "$said" >&2) &
until_ended $! TERM
sleep 0.2 # tee
if [ "$code" -ne 0 ] && { [ -n "$stopped" ] || grep -q 'stopped: ' "$said"; }; then
  exit 75
elif [ "$code" -ne 0 ] && grep -Eq '^(\[rank [0-9]+\] )?error: ' "$said"; then
  exit 2
fi
exit "$code"
