"""The self-check of each fused kernel, in a process of its own that a bad one may take down."""

import shutil
import warnings
from collections.abc import Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import cast

import torch

from esmfold_peft.config import Kernels, ModelConfig
from esmfold_peft.errors import UserError
from esmfold_peft.model.evoformer import KERNEL_FLAGS
from esmfold_peft.model.kernels import CHECKED_LENGTH, check_kernels
from gpu_checks.environment import has_module
from gpu_checks.report import Row, failed, measured, skipped
from gpu_checks.running import Context

MODULES = {
    "deepspeed": ("deepspeed.ops.deepspeed4science",),
    "cuequivariance": ("cuequivariance_torch", "cuequivariance_ops_torch"),
    "triton": ("triton",),
}
"""What each kernel needs."""

PRECISIONS = ("float32", "bf16")

SECONDS = 60.0
"""DeepSpeed compiles its kernel at first use."""


def fused_kernels(context: Context) -> Iterator[Row]:
    """Each kernel agrees with the plain path, or is absent with the reason."""
    for name in KERNEL_FLAGS:
        if name == "none":
            continue
        row = f"kernel {name}: self-check"
        if reason := absence(name, context.device):
            yield skipped(row, reason)
            continue
        problems = apart(name, context.device)
        for precision, problem in problems.items():
            place = f"{row}, {precision}"
            yield failed(place, problem) if problem else measured(place, "agrees")
        if not problems["bf16"]:
            context.kernels.append(name)


def absence(name: str, device: torch.device) -> str:
    """Why a kernel cannot be here; "" if it can.

    Args:
        name: of the kernel.
        device: under check.
    """
    if device.type != "cuda":
        return "absent: needs a GPU"
    missing = [module for module in MODULES[name] if not has_module(module)]
    if missing:
        return f"absent: {', '.join(missing)} not installed"
    if name == "deepspeed" and shutil.which("nvcc") is None:
        return "absent: DeepSpeed compiles it with nvcc, which is not there"
    if name == "deepspeed" and not _deepspeed_compiles():
        return "absent: DeepSpeed cannot compile it here (it needs CUDA's headers and CUTLASS)"
    return ""


def _deepspeed_compiles() -> bool:
    from deepspeed.ops import op_builder

    try:
        builder = op_builder.EvoformerAttnBuilder()  # pyright: ignore[reportAttributeAccessIssue]
        return builder.is_compatible(verbose=False)
    except Exception:  # its error for a CUDA that is not there is of no public kind
        return False


def apart(name: str, device: torch.device) -> dict[str, str]:
    """What is wrong with a kernel by precision, "" if nothing, found in a process of its own.

    Args:
        name: of the kernel.
        device: under check.
    """
    spawn = get_context("spawn")
    receiver, sender = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_send_problems, args=(name, device.type, sender))
    process.start()
    sender.close()  # so that its death ends the waiting
    try:
        if not receiver.poll(SECONDS):
            return dict.fromkeys(PRECISIONS, f"not done after {SECONDS:.0f} s")
        return receiver.recv()
    except EOFError:
        process.join(5)
        return dict.fromkeys(PRECISIONS, f"its process died with exit code {process.exitcode}")
    finally:
        process.kill()
        process.join()


def _send_problems(name: str, device: str, sender: Connection) -> None:
    warnings.filterwarnings("ignore")
    sender.send({precision: _problem(name, device, precision) for precision in PRECISIONS})


def _problem(name: str, device: str, precision: str) -> str:
    config = ModelConfig(kernels=cast(Kernels, name))
    bf16 = precision == "bf16"
    try:
        check_kernels(config, torch.device(device), length=CHECKED_LENGTH, bf16=bf16)
    except UserError as error:
        return str(error)
    return ""
