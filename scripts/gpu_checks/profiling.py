"""Where the time of a training step goes: busy share, operators, and waits of the host."""

import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from measuring import Step, kernels, seconds
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import esmfold_peft
from gpu_checks.paper_step import batch_of, chosen_setup, paper_model, training_of
from gpu_checks.report import Row, measured, skipped
from gpu_checks.running import Context

NAME = "profile"

OPERATORS = 10
"""Rows of the operators that take the most time."""

NEEDS_GPU = "absent: needs a GPU"
PACKAGE = Path(esmfold_peft.__file__).parent
SYNCHRONIZED = "called a synchronizing CUDA operation"
"""What PyTorch warns of."""


def profiling(context: Context) -> Iterator[Row]:
    """One micro-batch's forward and backward pass without recycling, in the fastest setup."""
    setup, device = chosen_setup(context), context.device
    model = paper_model(setup, context)
    training = training_of(model, batch_of(context, setup.micro_batch).to(device), 0)

    def step() -> None:
        training.loss(training.fold()).backward()
        model.zero_grad()

    for _ in range(2):
        step()  # warms up
    # The profiler slows down what launches kernels, but not the kernels.
    wall = seconds(step, device)
    detail = f"no recycling, {setup}"
    yield measured(f"{NAME}: forward and backward", 1e3 * wall, "ms", detail=detail)
    if device.type == "cuda":
        yield from _on_gpu(step, wall)
    else:
        yield from _on_cpu(step)


def _on_gpu(step: Step, wall: float) -> Iterator[Row]:
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        step()
        torch.cuda.synchronize()
    events = profiler.key_averages()
    busy = sum(e.self_device_time_total for e in events if e.device_type == DeviceType.CUDA)
    detail = f"kernels {busy / 1e3:.1f} ms of {1e3 * wall:.1f} ms"
    yield measured(f"{NAME}: GPU busy", busy / 1e4 / wall, "%", detail=detail)
    launched = sum(e.count for e in events if "LaunchKernel" in e.key)
    yield measured(f"{NAME}: kernels launched", launched)
    operators = [e for e in events if e.device_type == DeviceType.CPU]
    yield from operator_rows(
        {e.key: (e.self_device_time_total, e.count) for e in operators}, "kernels"
    )
    torch.cuda.set_sync_debug_mode("warn")
    try:
        places = waits(step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found = ", ".join(f"{place} {count}x" for place, count in places.most_common())
    yield measured(f"{NAME}: waits of the host", places.total(), detail=found or "none")


def _on_cpu(step: Step) -> Iterator[Row]:
    yield skipped(f"{NAME}: GPU busy", NEEDS_GPU)
    yield measured(f"{NAME}: operations", kernels(step))
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    events = profiler.key_averages()
    yield from operator_rows({e.key: (e.self_cpu_time_total, e.count) for e in events}, "all")
    yield skipped(f"{NAME}: waits of the host", NEEDS_GPU)


def operator_rows(operators: dict[str, tuple[float, int]], whole: str) -> Iterator[Row]:
    """The operators that take the most time, without what they call.

    Args:
        operators: microseconds and calls by name.
        whole: of what the shares are.
    """
    total = sum(time for time, _ in operators.values())
    slowest = sorted(operators, key=lambda key: operators[key][0], reverse=True)
    for key in slowest[:OPERATORS]:
        time, calls = operators[key]
        detail = f"{calls} calls, {time / total:.1%} of {whole}"
        yield measured(f"{NAME}: {key}", time / 1e3, "ms", detail=detail)


def waits(step: Step) -> Counter[str]:
    """How often a step waits for the GPU, by the innermost line of the package.

    Args:
        step: run while PyTorch warns of such waits.
    """
    places: Counter[str] = Counter()

    def note(message: Warning | str, *others: object, **more: object) -> None:
        if SYNCHRONIZED in str(message):
            places[_own_line()] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        step()
    return places


def _own_line() -> str:
    """The innermost line of the package on the stack; the backward pass has none."""
    for frame, line in traceback.walk_stack(None):
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(PACKAGE):
            return f"{file.relative_to(PACKAGE)}:{line}"
    return "elsewhere"
