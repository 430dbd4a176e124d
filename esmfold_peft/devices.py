"""Which device a command runs on, what it is good at, and whether its memory was too small."""

from importlib.util import find_spec

import torch

from esmfold_peft.config.checks import check_device
from esmfold_peft.errors import UserError

_MEMORY = ("out of memory", "ALLOC_FAILED", "DefaultCPUAllocator", "Cannot allocate memory")


def choose_device(device: str, local_rank: int = 0) -> torch.device:
    """The device that a setting names.

    Args:
        device: cpu, gpu, cuda:N, or auto (a GPU if there is one).
        local_rank: of this process on its machine; where GPUs are shared out, it takes the GPU of
            this number.

    Raises:
        UserError: it is none of these, or a GPU is asked for and is not there.
    """
    check_device(device)
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(f"device: {device} is asked for, and PyTorch finds no GPU")
    found = torch.cuda.device_count()
    number = int(device[5:]) if ":" in device else local_rank % found
    if number >= found:
        raise UserError(f"device: {device} is asked for, and PyTorch finds {found} GPU(s)")
    return torch.device("cuda", number)


def make_current(device: torch.device) -> None:
    """Makes a GPU the current one of this process; for a CPU there is nothing to do.

    Kernels that are no part of PyTorch start on the current one, wherever their tensors are.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)


TRITON_NEEDS = (7, 0)
"""Compute capability of the oldest GPU that Triton compiles for."""


def compile_obstacle(device: torch.device) -> str | None:
    """What keeps PyTorch's compiler from making a GPU's kernels here; None if nothing does."""
    if device.type != "cuda":
        return "no GPU"
    if torch.version.hip:
        return "this was written for NVIDIA's GPUs"
    if find_spec("triton") is None:
        return "Triton is not installed"
    if torch.cuda.get_device_capability(device) < TRITON_NEEDS:
        return "the GPU is too old for Triton"
    return None


def lists_pairs(device: torch.device) -> bool:
    """Whether code is to list the few pairs of residues or atoms that count, and look at no others.

    That is faster on a CPU. Elsewhere the host would wait for the length of the list, and compiled
    code needs shapes that do not depend on values: there all pairs are looked at.
    """
    return device.type == "cpu" and not torch.compiler.is_compiling()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a device or the machine has too little memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(part in str(error) for part in _MEMORY)
