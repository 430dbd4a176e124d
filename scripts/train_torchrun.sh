#!/usr/bin/env bash
# Trains with torchrun, one process a GPU:
#
#     scripts/train_torchrun.sh --config configs/paper/lora_r1.yaml --run runs/lora_r1 \
#         --data.train chains/train --data.validation chains/validation
#
# On several machines give the same command on each, with their number and where they meet:
#
#     NODES=2 RENDEZVOUS=first-host:29500 scripts/train_torchrun.sh ...
#
# Every machine needs the same paths, the run's folder included. Give the same command again to
# resume the run. torchrun ends with 1 whatever its processes end with; their reason is above it.

set -euo pipefail

# Processes on this machine: `gpu` is one for each GPU; a number for fewer, or on a CPU.
PROCESSES="${PROCESSES:-gpu}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"  # spinning threads on busy cores cost a lot

if [[ "${NODES:-1}" == 1 ]]; then
    where=(--standalone)  # meets on a free port
else
    where=(--nnodes="$NODES" --rdzv-backend=c10d --rdzv-endpoint="${RENDEZVOUS:?host:port}")
    where+=(--rdzv-id="${JOB:-esmfold_peft}")  # another one for each run that meets there
fi

# Flags after `--` are ours.
exec "${PYTHON:-python}" -m torch.distributed.run "${where[@]}" --nproc-per-node="$PROCESSES" \
    -m -- esmfold_peft train "$@" --resume auto
