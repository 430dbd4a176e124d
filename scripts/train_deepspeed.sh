#!/usr/bin/env bash
# Trains with DeepSpeed's own launcher, one process a GPU:
#
#     scripts/train_deepspeed.sh --config configs/paper/lora_r1.yaml --run runs/lora_r1 \
#         --data.train chains/train --engine.deepspeed configs/deepspeed/zero2.json
#
# On several machines, which this one reaches by ssh without a password and by pdsh, write their
# names and numbers of GPUs to a file (`gpu-1 slots=4`, one a line) and give it on this one:
#
#     HOSTFILE=hosts scripts/train_deepspeed.sh ...
#
# A second training on the same machine needs another port than 29500, where its processes meet:
#
#     PORT=29501 scripts/train_deepspeed.sh ...
#
# Every machine needs the same paths. The launcher's processes there see of this environment only
# what ./.deepspeed_env says (NAME=value, one a line), PYTHON* and NCCL*.
#
# Give the same command again to resume the run.

set -euo pipefail

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"  # spinning threads on busy cores cost a lot

where=()
if [[ -n "${HOSTFILE:-}" ]]; then
    where+=(--hostfile "$HOSTFILE")
fi
if [[ -n "${PROCESSES:-}" ]]; then
    where+=(--num_gpus "$PROCESSES")  # on each machine; all of its GPUs otherwise
fi
if [[ -n "${PORT:-}" ]]; then
    where+=(--master_port "$PORT")
fi

# Without --no_local_rank it would add a flag that `train` does not know. What follows the module's
# name is ours. In a process group of its own (set -m) a signal reaches all processes: the launcher
# itself does not pass SIGTERM on, and would leave them behind.
set -m
"${PYTHON:-python}" -m deepspeed.launcher.runner "${where[@]}" --no_local_rank \
    --module esmfold_peft train "$@" --resume auto &
group=$!
trap 'kill -TERM -- "-$group"' TERM
trap 'kill -INT -- "-$group"' INT
code=0
wait "$group" || code=$?
while kill -0 -- "-$group" 2>/dev/null; do sleep 0.5; done  # they save a checkpoint
exit "$code"
