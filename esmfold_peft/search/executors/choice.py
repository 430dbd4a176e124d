"""The executor that the settings name, or one line that says why it cannot be."""

import os

from esmfold_peft.config import SearchConfig
from esmfold_peft.errors import UserError
from esmfold_peft.search.executors.local import LocalExecutor
from esmfold_peft.search.executors.protocol import Executor


def build_executor(config: SearchConfig) -> Executor:
    """Makes the executor.

    Raises:
        UserError: its package or program is missing, its cluster cannot be reached, or this machine
            has too few GPUs.
    """
    own = config.executor
    if own.kind == "ray":
        from esmfold_peft.search.executors.ray import RayExecutor

        return RayExecutor(own, config.output)
    if own.kind == "slurm":
        from esmfold_peft.search.executors.slurm import SlurmExecutor

        return SlurmExecutor(own, config.output)
    gpus = _gpus()
    needed = own.concurrent * gpus_of(config)
    if needed > len(gpus):
        raise UserError(
            f"executor.concurrent: {own.concurrent} trials of {gpus_of(config)} GPUs need"
            f" {needed}, this machine has {len(gpus)}"
        )
    return LocalExecutor(gpus)


def gpus_of(config: SearchConfig) -> int:
    """GPUs that a trial takes; 0 on a CPU.

    Raises:
        UserError: a trial is to run on several machines, which one job cannot.
    """
    engine = config.engine
    if engine.nodes not in (None, 1):
        raise UserError(f"engine.nodes: {engine.nodes}: a trial runs on one machine")
    if engine.accelerator == "cpu":
        return 0
    if engine.accelerator == "auto" and config.executor.kind == "local" and not _gpus():
        return 0
    return config.devices


def _gpus() -> list[str]:
    """GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[:count] if visible else [str(k) for k in range(count)]
