"""Where the time of a training step goes: busy share, operators, and waits of the host."""

import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from measuring import Step, kernels, seconds
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import esmfold_peft
from gpu_checks.paper_step import chosen_setup, optimizer_step
from gpu_checks.report import Row, at_most, measured, skipped
from gpu_checks.running import Context

NAME = "profile"
WAITS = f"{NAME}: waits of the host, beside the summary's"
SUMMARY = "training/step_summary.py:"

OPERATORS = 10
"""Rows of the operators that take the most time."""

NEEDS_GPU = "absent: needs a GPU"
PACKAGE = Path(esmfold_peft.__file__).parent
SYNCHRONIZED = "called a synchronizing CUDA operation"
"""What PyTorch warns of."""


def profiling(context: Context) -> Iterator[Row]:
    """A step with one recycle on the micro-batch of the fastest setup, which must never wait."""
    setup, device = chosen_setup(context), context.device
    run = optimizer_step(setup, context, chains=setup.micro_batch)
    step = partial(run, 1)
    for _ in range(2):
        step()  # warms up
    # The profiler slows down what launches kernels, but not the kernels.
    wall = seconds(step, device)
    detail = f"{setup.micro_batch} chains, 1 recycle, {setup}"
    yield measured(f"{NAME}: step", 1e3 * wall, "ms", detail=detail)
    if device.type == "cuda":
        yield from _on_gpu(step, wall)
    else:
        yield from _on_cpu(step)


def _on_gpu(step: Step, wall: float) -> Iterator[Row]:
    torch.cuda.set_sync_debug_mode("warn")
    try:
        yield waits_row(step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        step()
        torch.cuda.synchronize()
    events = profiler.key_averages()
    busy = sum(e.self_device_time_total for e in events if e.device_type == DeviceType.CUDA)
    detail = f"kernels {busy / 1e3:.1f} ms of {1e3 * wall:.1f} ms"
    yield measured(f"{NAME}: GPU busy", busy / 1e4 / wall, "%", detail=detail)
    launched = sum(e.count for e in events if "Launch" in e.key)
    yield measured(f"{NAME}: launches of the host", launched)
    operators = [e for e in events if e.device_type == DeviceType.CPU]
    yield from operator_rows(
        {e.key: (e.self_device_time_total, e.count) for e in operators}, "kernels"
    )


def _on_cpu(step: Step) -> Iterator[Row]:
    yield skipped(WAITS, NEEDS_GPU)
    yield skipped(f"{NAME}: GPU busy", NEEDS_GPU)
    yield measured(f"{NAME}: operations", kernels(step))
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    events = profiler.key_averages()
    yield from operator_rows({e.key: (e.self_cpu_time_total, e.count) for e in events}, "all")


def waits_row(step: Step) -> Row:
    """Fails if a step waits for the GPU but once, to fetch its summary; says where.

    Args:
        step: run while PyTorch warns of such waits.
    """
    places = waits(step)
    found = ", ".join(f"{place} {count}x" for place, count in places.most_common())
    fetched = min(1, sum(count for place, count in places.items() if place.startswith(SUMMARY)))
    return at_most(WAITS, places.total() - fetched, 0, detail=found or "none")


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
