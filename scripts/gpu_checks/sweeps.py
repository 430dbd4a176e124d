"""Which tiles of the attention kernels are fastest on this card, in a file as the package reads it.

The fastest tiles are in use from then on, and in later calls that find the file.
"""

import time
from collections.abc import Callable, Iterator

import torch
from measuring import circumstances, milliseconds
from torch import Tensor

from esmfold_peft.model.trunks.attention import plain_attention, plain_backward
from esmfold_peft.model.trunks.tiling import Key, Tiles, tiles_on, write_tiles
from gpu_checks.attention import LIMITS, distance, inputs
from gpu_checks.environment import has_module
from gpu_checks.report import Row, measured, skipped
from gpu_checks.running import Context

SHAPES: dict[tuple[str, bool], tuple[tuple[int, int, int | None], ...]] = {
    ("forward", True): ((32, 8, None), (16, 8, None), (16, 4, None), (32, 4, None)),
    ("query", True): ((32, 8, None), (16, 8, None), (16, 4, None)),
    ("key", True): ((32, 8, None), (16, 8, None), (16, 4, None)),
    ("forward", False): ((128, 8, 64), (64, 4, 64), (64, 4, 32), (128, 4, 32), (128, 8, 128)),
    ("query", False): ((128, 8, 64), (64, 4, 64), (64, 4, 32), (64, 8, 64), (128, 8, 32)),
    ("key", False): ((64, 4, 32), (64, 4, 64), (64, 8, 64), (64, 8, 32), (128, 8, 64)),
    ("bias", False): ((64, 4, 64), (128, 8, 64), (64, 8, 128), (32, 4, 64), (64, 4, 32)),
}
"""Tile, warps and block that are tried, by kernel and whether one block holds a row. None makes the
compiler spill more than 8 bytes of registers on a compute capability of 9.0."""

STAGES = {True: (2, 1, 3), False: (2, 3)}

DTYPE = torch.bfloat16

Pass = Callable[[], tuple[Tensor, ...]]


def sweeps(context: Context) -> Iterator[Row]:
    """A row for each kernel, whose detail has the time of each candidate."""
    seconds = context.sizes.sweep / len(SHAPES)
    for (kernel, whole), shapes in SHAPES.items():
        length = context.sizes.attention[0 if whole else 1]
        name = f"sweep, {length} x {length}, bf16: {kernel}"
        step = launching(kernel, length, context)
        if step is None:
            yield skipped(name, "absent: Triton")
            continue
        tiles = [Tiles(t, w, stages, block) for t, w, block in shapes for stages in STAGES[whole]]
        yield fastest(name, (kernel, DTYPE, whole), tiles, step, context, seconds=seconds)
        chosen = {key: tiles for key, tiles in tiles_on(context.device).items() if key[1] == DTYPE}
        write_tiles(context.tiles, chosen, circumstances(context.device))


def launching(kernel: str, length: int, context: Context) -> Pass | None:
    """A pass of the attention in which a kernel is launched; None where there are no kernels.

    On a CPU it is the plain path, which has no tiles.

    Args:
        kernel: forward, or one of the backward pass.
        length: rows, and residues of a row.
        context: see there.
    """
    qkvg, bias = inputs(length, length, DTYPE, context)
    if context.device.type == "cpu":
        out, _ = plain_attention(qkvg, bias)
        if kernel == "forward":
            return lambda: plain_attention(qkvg, bias)[:1]
        return lambda: plain_backward(out, qkvg, bias, out)
    if not has_module("triton"):
        return None
    from esmfold_peft.model.trunks import triton_attention

    out, lse = triton_attention.forward(qkvg, bias)
    if kernel == "forward":
        return lambda: triton_attention.forward(qkvg, bias)
    return lambda: triton_attention.backward(out, qkvg, bias, out, lse)


def fastest(
    name: str,
    key: Key,
    candidates: list[Tiles],
    step: Pass,
    context: Context,
    *,
    seconds: float,
) -> Row:
    """Times candidates beside the tiles in use, and puts the fastest in their place.

    Args:
        name: of the row.
        key: of the kernel.
        candidates: in the order in which they are tried.
        step: launches it, and gives results by which a wrong kernel shows.
        context: see there.
        seconds: after which no more is tried.
    """
    table = tiles_on(context.device)
    until, usual, expected = time.monotonic() + seconds, table[key], step()
    times: dict[Tiles, float] = {}
    notes: list[str] = []
    try:
        for tiles in dict.fromkeys([usual, *candidates]):
            if times and time.monotonic() > until:
                notes.append("no time for the others")
                break
            table[key] = tiles
            shape = f"{tiles.tile}/{tiles.block or 'all'}, {tiles.warps} warps, {tiles.stages}"
            fault = _fault(step, expected)
            if fault is None:
                times[tiles] = milliseconds(step, 2 * context.sizes.rounds, context.device)
            notes.append(f"{shape}: {fault or f'{times[tiles]:.3f}'}")
    finally:
        table[key] = min(times, key=lambda tiles: times[tiles], default=usual)
    detail = f"ms by tile, warps, stages: {'; '.join(notes)}"
    return measured(name, times[table[key]], "ms", detail=detail)


def _fault(step: Pass, expected: tuple[Tensor, ...]) -> str | None:
    """Why the tiles in use cannot be taken."""
    try:
        pairs = zip(step(), expected, strict=True)
        errors = [distance(found, usual.float()) for found, usual in pairs]
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # compilers and drivers raise errors of many kinds
        return type(error).__name__
    # max() would pass over NaN.
    return None if all(e <= LIMITS[DTYPE] for e in errors) else f"off by {max(errors):.0%}"
