"""The attention kernels: their formula, their time beside others', and the fastest tiles.

A sweep writes the fastest tiles into a file as the package reads it. They are in use from then on,
and in later calls that find the file.
"""

import time
from collections.abc import Callable, Generator
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from measuring import circumstances, milliseconds
from torch import Tensor

from esmfold_peft.model.trunks.attention import (
    MASKED_LOGIT,
    gated_attention,
    plain_attention,
    plain_backward,
)
from esmfold_peft.model.trunks.tiling import Key, Tiles, tiles_on, write_tiles
from gpu_checks.card import has_modules
from gpu_checks.models import Sizes
from gpu_checks.report import Row, measured, skipped
from gpu_checks.running import Context

Attention = Callable[[Tensor, Tensor], Tensor]
"""Of `qkvg` and a bias, as `gated_attention`."""

LIMITS = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""Largest relative error, by norms. The plain path's are 5e-7 and 1e-2; a forgotten gate, mask or
scale gives 1e-1 and more."""

CHAINS = 2
PARTS = ("output", "query", "key", "value", "gate", "bias")
"""All but the first are gradients."""

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


def formula(qkvg: Tensor, bias: Tensor) -> Tensor:
    """Gated attention by its definition, which PyTorch differentiates."""
    q, k, v, gate = _by_head(qkvg, bias)
    logits = q @ k.mT * q.shape[-1] ** -0.5 + bias[:, None]
    return _joined(logits.softmax(-1) @ v, gate)


def _pytorch(qkvg: Tensor, bias: Tensor) -> Tensor:
    q, k, v, gate = _by_head(qkvg, bias)
    logits = bias[:, None].expand(-1, q.shape[1], -1, -1, -1)
    return _joined(F.scaled_dot_product_attention(q, k, v, attn_mask=logits), gate)


def _openfold3(qkvg: Tensor, bias: Tensor) -> Tensor:
    from openfold3.core.model.primitives.attention import _attention  # its core has no public name

    q, k, v, gate = _by_head(qkvg, bias)
    return _joined(_attention(q * q.shape[-1] ** -0.5, k, v, [bias[:, None]]), gate)


def _cuequivariance(qkvg: Tensor, bias: Tensor) -> Tensor:
    from cuequivariance_torch import triangle_attention  # pyright: ignore[reportMissingImports]

    q, k, v, gate = _by_head(qkvg, bias)
    return _joined(triangle_attention(q, k, v, bias[:, None]), gate)


def _by_head(qkvg: Tensor, bias: Tensor) -> Tensor:
    return qkvg.unflatten(-1, (4, bias.shape[1], -1)).permute(3, 0, 1, 4, 2, 5)


def _joined(mixed: Tensor, gate: Tensor) -> Tensor:
    return (mixed * gate.sigmoid()).transpose(2, 3).flatten(3)


def contenders() -> dict[str, Attention | None]:
    """Ways to compute the same by name; None if the package is not installed."""
    there = has_modules("cuequivariance_torch", "cuequivariance_ops_torch")
    return {
        "ours": gated_attention,
        "PyTorch": _pytorch,
        "openfold3": _openfold3,
        "cuEquivariance": _cuequivariance if there else None,
    }


def inputs(
    rows: int,
    length: int,
    dtype: torch.dtype,
    sizes: Sizes,
    device: torch.device,
    *,
    padding: int = 0,
) -> tuple[Tensor, Tensor]:
    """Random `qkvg` (chains, rows, length, 4 c) and bias (chains, heads, length, length).

    Heads and widths are the pair track's; the last chain is `padding` residues shorter.
    """
    heads, width = sizes.paper.evoformer.heads_pair, sizes.paper.evoformer.c_head_pair
    generator = torch.Generator().manual_seed(0)
    qkvg = torch.randn(CHAINS, rows, length, 4 * heads * width, generator=generator)
    bias = torch.randn(CHAINS, heads, length, length, generator=generator)
    bias[-1, ..., length - padding :] = MASKED_LOGIT
    return qkvg.to(device, dtype), bias.to(device, dtype)


def output_and_gradients(attention: Attention, *given: Tensor) -> dict[str, Tensor]:
    """Each of `PARTS`; the gradients are those of a random sum of the output."""
    qkvg, bias = (x.detach().requires_grad_() for x in given)
    output = attention(qkvg, bias)
    generator = torch.Generator().manual_seed(1)
    above = torch.randn(output.shape, generator=generator).to(output)
    grad_qkvg, grad_bias = torch.autograd.grad(output, (qkvg, bias), above)
    return dict(zip(PARTS, (output.detach(), *grad_qkvg.chunk(4, -1), grad_bias), strict=True))


def distance(found: Tensor, expected: Tensor) -> float:
    """Relative error: the norm of the difference over the norm of the expected tensor."""
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def attention_times(context: Context) -> Generator[Row]:
    """Forward pass, and forward and backward pass, of our operator and of others'."""
    length = context.sizes.attention[0]
    given = inputs(length, length, DTYPE, context.sizes, context.device)
    ones = torch.ones_like(gated_attention(*given))
    for name, attention in contenders().items():
        row = f"attention, {CHAINS} x {length} x {length}, bf16: {name}"
        if attention is None:
            yield skipped(row, "absent: cuequivariance_torch or its operations not installed")
            continue
        leaves = [x.clone().requires_grad_() for x in given]

        @torch.no_grad()
        def forward(attention: Attention = attention) -> None:
            attention(*given)

        def both(attention: Attention = attention, leaves: list[Tensor] = leaves) -> None:
            torch.autograd.grad(attention(*leaves), leaves, ones)

        for passes, step in (("forward", forward), ("forward and backward", both)):
            taken = milliseconds(step, 2 * context.sizes.rounds, context.device)
            yield measured(f"{row}, {passes}", taken, "ms")


def sweeps(context: Context) -> Generator[Row]:
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
    """A pass of the attention that launches a kernel (forward, or one of the backward pass).

    None without Triton. On a CPU it is the plain path, which has no tiles.
    """
    qkvg, bias = inputs(length, length, DTYPE, context.sizes, context.device)
    forward: Callable[..., Any]
    if context.device.type == "cpu":
        forward, backward = plain_attention, lambda *given: plain_backward(*given[:4])
        results = 1  # the other one is zeros
    elif has_modules("triton"):
        from esmfold_peft.model.trunks.triton_attention import backward, forward

        results = 2
    else:
        return None
    out, lse = forward(qkvg, bias)
    if kernel == "forward":
        return lambda: forward(qkvg, bias)[:results]
    return lambda: backward(out, qkvg, bias, out, lse)


def fastest(
    name: str,
    key: Key,
    candidates: list[Tiles],
    step: Pass,
    context: Context,
    *,
    seconds: float,
) -> Row:
    """Times the tiles in use and the candidates, and puts the fastest into use.

    `step` launches the kernel; tiles whose results differ are refused. After `seconds` no more are
    tried.
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
        errors = [distance(found, usual) for found, usual in pairs]
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # compilers and drivers raise errors of many kinds
        return type(error).__name__
    # max() would ignore NaN.
    return None if all(e <= LIMITS[DTYPE] for e in errors) else f"off by {max(errors):.0%}"
