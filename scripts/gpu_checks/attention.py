"""Gated attention: is it what its formula says, and how fast is it beside others'?"""

from collections.abc import Callable, Iterator
from itertools import product

import torch
import torch.nn.functional as F  # noqa: N812
from measuring import milliseconds
from torch import Tensor

from esmfold_peft.model.trunks.attention import (
    KERNEL_PRECISIONS,
    KERNEL_WIDTHS,
    checked_kernels,
    gated_attention,
)
from esmfold_peft.model.trunks.triangles import MASKED_LOGIT
from gpu_checks.environment import has_module
from gpu_checks.parity import matmul_precision, worst
from gpu_checks.report import Row, at_most, measured, skipped
from gpu_checks.running import Context

Attention = Callable[[Tensor, Tensor], Tensor]
"""Of `qkvg` and a bias, as `gated_attention`."""

LIMITS = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""Norm of a difference over the norm of what is expected. The plain path's are 5e-7 and 1e-2; a
forgotten gate, mask or scale is 1e-1 and more."""

CHAINS = 2
PARTS = ("output", "query", "key", "value", "gate", "bias")
"""All but the first are gradients."""


def attention_kernel(context: Context) -> Iterator[Row]:
    """Output and gradients, where a block of the kernel holds all keys and where it does not.

    Without a GPU and Triton, the path that takes the kernel's place is what is checked.
    """
    name = "attention kernel"
    if context.device.type == "cuda" and has_module("triton"):
        yield uses_kernels(f"{name}: cases without Triton", context.device)
    else:
        yield skipped(f"{name}: Triton", "absent: needs a GPU and Triton")
    for dtype, limit in LIMITS.items():
        for length in context.sizes.attention:
            for rows in (length, 1):
                given = inputs(rows, length, dtype, context, padding=length // 5)
                found = output_and_gradients(gated_attention, *given)
                with matmul_precision("highest"):
                    expected = output_and_gradients(formula, *(x.float() for x in given))
                off = {part: distance(found[part], expected[part]) for part in PARTS}
                yield worst(f"{name}: {rows} x {length}, {_short(dtype)}", off, limit)


def uses_kernels(name: str, device: torch.device) -> Row:
    """Whether the operator takes its kernels, which it leaves with a warning if they are wrong.

    Args:
        name: of the row.
        device: under check.
    """
    unused = [
        f"{width} channels {_short(dtype)} {f'up to {block}' if block else 'in blocks'}"
        for width, dtype, block in product(KERNEL_WIDTHS, KERNEL_PRECISIONS, (64, 256, None))
        if checked_kernels(device, width, dtype, block) is None
    ]
    return at_most(name, len(unused), 0, detail=", ".join(unused))


def attention_times(context: Context) -> Iterator[Row]:
    """Forward pass, and forward and backward pass, of our operator and of others'."""
    length = context.sizes.attention[0]
    given = inputs(length, length, torch.bfloat16, context)
    ones = torch.ones_like(gated_attention(*given))
    for name, attention in contenders().items():
        row = f"attention, {CHAINS} x {length} x {length}, bf16: {name}"
        if attention is None:
            yield skipped(row, "absent: cuequivariance_torch or its operations not installed")
            continue
        leaves = [x.clone().requires_grad_() for x in given]

        def forward(attention: Attention = attention) -> None:
            with torch.no_grad():
                attention(*given)

        def both(attention: Attention = attention, leaves: list[Tensor] = leaves) -> None:
            torch.autograd.grad(attention(*leaves), leaves, ones)

        for passes, step in (("forward", forward), ("forward and backward", both)):
            time = milliseconds(step, 2 * context.sizes.rounds, context.device)
            yield measured(f"{row}, {passes}", time, "ms")


def inputs(
    rows: int, length: int, dtype: torch.dtype, context: Context, *, padding: int = 0
) -> tuple[Tensor, Tensor]:
    """Random `qkvg` and bias of the paper's pair track.

    Args:
        rows: of a chain.
        length: residues of a row.
        dtype: of both.
        context: see there.
        padding: residues that the last chain lacks.
    """
    evoformer = context.sizes.paper.evoformer
    heads, width = evoformer.heads_pair, evoformer.c_head_pair
    generator = torch.Generator().manual_seed(0)
    qkvg = torch.randn(CHAINS, rows, length, 4 * heads * width, generator=generator)
    bias = torch.randn(CHAINS, heads, length, length, generator=generator)
    bias[-1, ..., length - padding :] = MASKED_LOGIT
    return qkvg.to(context.device, dtype), bias.to(context.device, dtype)


def output_and_gradients(attention: Attention, *given: Tensor) -> dict[str, Tensor]:
    """Each of `PARTS`; the gradients are those of a random sum of the output.

    Args:
        attention: any of the contenders.
        given: `qkvg` and the bias.
    """
    qkvg, bias = (x.detach().requires_grad_() for x in given)
    output = attention(qkvg, bias)
    generator = torch.Generator().manual_seed(1)
    above = torch.randn(output.shape, generator=generator).to(output)
    grad_qkvg, grad_bias = torch.autograd.grad(output, (qkvg, bias), above)
    return dict(zip(PARTS, (output.detach(), *grad_qkvg.chunk(4, -1), grad_bias), strict=True))


def distance(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over that of what is expected.

    Args:
        found: of any type.
        expected: in float32.
    """
    return float((found.float() - expected).norm() / expected.norm())


def formula(qkvg: Tensor, bias: Tensor) -> Tensor:
    """Gated attention by its definition, which PyTorch differentiates."""
    q, k, v, gate = _by_head(qkvg, bias)
    logits = q @ k.mT * q.shape[-1] ** -0.5 + bias[:, None]
    return _joined(logits.softmax(-1) @ v, gate)


def contenders() -> dict[str, Attention | None]:
    """Ways to compute the same by name; None is absent."""
    modules = ("cuequivariance_torch", "cuequivariance_ops_torch")
    there = all(has_module(module) for module in modules)
    return {
        "ours": gated_attention,
        "PyTorch": _pytorch,
        "openfold3": _openfold3,
        "cuEquivariance": _cuequivariance if there else None,
    }


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


def _short(dtype: torch.dtype) -> str:
    return "bf16" if dtype == torch.bfloat16 else "float32"
