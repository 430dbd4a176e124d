"""The self-check of each fused kernel, in a process of its own that a bad one may take down."""

import os
import shutil
import signal
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import cast

import torch

from esmfold_peft.config import Kernels, ModelConfig
from esmfold_peft.errors import UserError
from esmfold_peft.model.kernels import CHECKED_LENGTH, check_kernels
from gpu_checks.environment import has_module
from gpu_checks.paper_step import beside, chosen_setup
from gpu_checks.report import Row, failed, measured, skipped
from gpu_checks.running import Context

MODULES = {
    "triton": ("triton",),
    "cuequivariance": ("cuequivariance_torch", "cuequivariance_ops_torch"),
    "deepspeed": ("deepspeed.ops.deepspeed4science",),
}
"""What each kernel needs."""

PRECISIONS = ("float32", "bf16")

SECONDS = {"triton": 75.0, "cuequivariance": 75.0, "deepspeed": 900.0}
"""At most; DeepSpeed compiles its kernel at first use, on one core for more than eight minutes."""

CANNOT = " cannot run on "
"""What the self-check says of a kernel that gives no result here, rather than a wrong one."""


def fused_kernels(context: Context) -> Iterator[Row]:
    """Each kernel agrees with the plain path, or is absent with the reason."""
    yield from self_checks(("triton", "cuequivariance"), context)


def deepspeed_kernel(context: Context) -> Iterator[Row]:
    """The kernel that is compiled for minutes, and if it agrees a step with it."""
    yield from self_checks(("deepspeed",), context)
    if "deepspeed" in context.kernels:
        yield from beside(replace(chosen_setup(context), kernels="deepspeed"), context)


def self_checks(names: tuple[str, ...], context: Context) -> Iterator[Row]:
    """A row for each kernel, or one for each precision; keeps in `context` which may be used.

    Args:
        names: of kernels.
        context: see there.
    """
    for name in names:
        row = f"kernel {name}: self-check"
        if reason := absence(name, context.device):
            yield skipped(row, reason)
            continue
        problems = apart(name, context.device)
        for precision, problem in problems.items():
            yield verdict(f"{row}, {precision}", problem)
        if not problems["bf16"]:
            context.kernels.append(name)


def verdict(row: str, problem: str) -> Row:
    """A kernel that cannot run here is absent; one that is wrong has failed.

    Args:
        row: its name.
        problem: what the self-check said; "" if it agrees.
    """
    if not problem:
        return measured(row, "agrees")
    return skipped(row, f"absent: {problem}") if CANNOT in problem else failed(row, problem)


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


def apart(name: str, device: torch.device, length: int = CHECKED_LENGTH) -> dict[str, str]:
    """What is wrong with a kernel by precision, "" if nothing, found in a process of its own.

    Args:
        name: of the kernel.
        device: under check.
        length: residues that it is checked with.
    """
    spawn = get_context("spawn")
    receiver, sender = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_send_problems, args=(name, device.type, length, sender))
    process.start()
    sender.close()  # so that its death ends the waiting
    try:
        if not receiver.poll(SECONDS[name]):
            return dict.fromkeys(PRECISIONS, f"not done after {SECONDS[name]:.0f} s")
        return receiver.recv()
    except EOFError:
        process.join(5)
        return dict.fromkeys(PRECISIONS, f"its process died with exit code {process.exitcode}")
    finally:
        if process.pid is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # a compiler that it started too
        process.kill()
        process.join()


def _send_problems(name: str, device: str, length: int, sender: Connection) -> None:
    os.setpgrp()
    warnings.filterwarnings("ignore")
    sender.send({precision: _problem(name, device, length, precision) for precision in PRECISIONS})


def _problem(name: str, device: str, length: int, precision: str) -> str:
    config = ModelConfig(kernels=cast(Kernels, name))
    bf16 = precision == "bf16"
    try:
        check_kernels(config, torch.device(device), length=length, bf16=bf16)
    except UserError as error:
        return str(error)
    return ""
