"""The device against the CPU in float32: outputs, losses and gradients of the same model.

Where the device is the CPU itself, another path through the same mathematics stands in for it: rows
of the pair track in chunks, and everything recomputed in the backward pass.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from esmfold_peft.config import ModelConfig
from esmfold_peft.datasets.batch import Batch
from esmfold_peft.datasets.truth import ground_truth
from esmfold_peft.losses.total import fold_loss
from esmfold_peft.model.folding import FoldingModel
from esmfold_peft.model.heads import HEADS
from gpu_checks.models import CLAMP, real_batch, shaken_model
from gpu_checks.report import Row, at_least, at_most, measured
from gpu_checks.running import Context
from gpu_checks.sizes import FINETUNING, settings

BINNED = {"plddt", "pae"}
"""Losses whose target is a bin of the prediction's own error: rounding can move one residue or pair
of residues into the next bin."""

SMALLEST = 1e-3
"""Gradients smaller than this share of the largest are compared with that share: some are zero in
theory and noise in practice."""


@dataclass(frozen=True)
class Limits:
    """How far results may be apart.

    Attributes:
        positions: largest distance of an atom in Å.
        logits: largest difference of a logit.
        losses: largest relative difference of a loss term.
        binned: the same of the terms in `BINNED`.
        gradients: largest relative distance of a parameter's gradient.
        binned_gradients: the same of the parameters of the heads in `BINNED`.
    """

    positions: float
    logits: float
    losses: float
    binned: float
    gradients: float
    binned_gradients: float


FLOAT32 = Limits(
    positions=1e-3,
    logits=1e-3,
    losses=1e-4,
    binned=1e-3,
    gradients=1e-3,
    binned_gradients=2e-2,
)
"""A change of every weight by 2^-24 of itself moves atoms by up to 1e-4 Å, losses by 6e-7,
gradients by 2e-5, and by 3e-3 those of a head where a pair fell into the next bin (two blocks, 48
residues)."""

RECYCLED = 0.05
"""Å after a second pass, which reads distances in bins: rounding may move one to the next bin."""

BF16_FACTOR = 3.0
"""How much further than bfloat16 on the CPU the device's may be off. Both round alike, in another
order."""


@dataclass(frozen=True, eq=False)
class Results:
    """What a model gives for a batch, on the CPU, 0 in the padding.

    Attributes:
        positions: atom14 coordinates (b, n, 14, 3) in Å.
        logits: of each head.
        terms: of the loss, by chain.
        gradients: of the mean loss by trained parameter.
    """

    positions: Tensor
    logits: dict[str, Tensor]
    terms: dict[str, Tensor]
    gradients: dict[str, Tensor]


def parity(context: Context) -> Iterator[Row]:
    """Small and wide models in float32, in bfloat16, and with TF32."""
    for name, config in context.sizes.parity.items():
        yield from _parity_of(name, config, context)


def _parity_of(name: str, config: ModelConfig, context: Context) -> Iterator[Row]:
    device, length = context.device, context.sizes.parity_length
    batch = real_batch(length, 2, padding=length // 8)
    model = shaken_model(settings(config))
    expected = results(model, batch)
    yield with_gradient(f"{name}: parameters with a gradient", expected)
    recycled, rounded = positions(model, batch, 1), results(model, batch, bf16=True)
    other = other_path(model, config) if device.type == "cpu" else model.to(device)
    there = batch.to(device)
    with matmul_precision("highest"):
        yield from compare(f"{name} float32", results(other, there), expected, FLOAT32)
        distance = farthest(positions(other, there, 1), recycled)
        yield at_most(f"{name} float32: positions, recycled", distance, RECYCLED, unit="Å")
        found = results(other, there, bf16=True)
    yield from compare(f"{name} bf16", found, expected, bf16_limits(rounded, expected))
    if device.type == "cuda":
        with matmul_precision("high"):
            off = farthest(results(other, there).positions, expected.positions)
        yield measured(
            f"{name} TF32: positions", off, "Å", detail="for information: off by default"
        )


def results(model: FoldingModel, batch: Batch, *, bf16: bool = False) -> Results:
    """One pass forward and backward, with all heads and losses.

    Args:
        model: in training mode, without dropout.
        batch: on the model's device.
        bf16: under autocast.
    """
    model.bf16 = bf16
    output = model(batch.aatype, batch.residue_index, batch.mask, 0, heads=HEADS)
    clamp = torch.full(batch.resolution.shape, CLAMP, device=batch.mask.device)
    truth = ground_truth(batch)
    terms = fold_loss(output, truth, FINETUNING, clamp=clamp, resolution_range=None)
    model.zero_grad()
    terms.total.mean().backward()
    rows, pairs = batch.mask, batch.mask[:, :, None] & batch.mask[:, None]
    masks = {"distogram": pairs, "pae": pairs, "plddt": rows, "resolved": rows}
    logits = {head: getattr(output, f"{head}_logits") for head in HEADS}
    return Results(
        positions=_plain(output.positions * rows[..., None, None]),
        logits={head: _plain(value * masks[head][..., None]) for head, value in logits.items()},
        terms={name: _plain(value) for name, value in terms.terms.items()},
        gradients={
            name: torch.zeros(p.shape) if p.grad is None else _plain(p.grad)
            for name, p in model.named_parameters()
            if p.requires_grad
        },
    )


@torch.no_grad()
def positions(model: FoldingModel, batch: Batch, recycles: int) -> Tensor:
    """Coordinates in float32 after some recycling, 0 in the padding.

    Args:
        model: without dropout.
        batch: on the model's device.
        recycles: passes after the first.
    """
    model.bf16 = False
    output = model(batch.aatype, batch.residue_index, batch.mask, recycles, heads=())
    return _plain(output.positions * batch.mask[..., None, None])


def other_path(model: FoldingModel, config: ModelConfig) -> FoldingModel:
    """A model with the same weights that computes in chunks and recomputes.

    Args:
        model: on the CPU.
        config: its sizes.
    """
    changed = replace(
        config,
        chunk=5,
        evoformer=replace(config.evoformer, checkpoint=True),
        language_model=replace(config.language_model, checkpoint=True),
    )
    other = shaken_model(settings(changed))
    other.load_state_dict(model.state_dict())
    return other


def compare(name: str, found: Results, expected: Results, limits: Limits) -> Iterator[Row]:
    """A row each for positions, logits, losses and gradients, which names the worst.

    Args:
        name: what is compared.
        found: on the device.
        expected: on the CPU.
        limits: see the class.
    """
    distance = farthest(found.positions, expected.positions)
    yield at_most(f"{name}: positions", distance, limits.positions, unit="Å")
    off = {k: _largest(found.logits[k] - value) for k, value in expected.logits.items()}
    yield worst(f"{name}: logits", off, limits.logits)
    off = {k: _relative(found.terms[k], value) for k, value in expected.terms.items()}
    sharp = {k: value for k, value in off.items() if k not in BINNED}
    yield worst(f"{name}: losses", sharp, limits.losses)
    binned = {k: value for k, value in off.items() if k in BINNED}
    yield worst(f"{name}: losses by bins", binned, limits.binned)
    sharp, binned = gradient_errors(found, expected)
    yield worst(f"{name}: gradients", sharp, limits.gradients)
    yield worst(f"{name}: gradients of bins", binned, limits.binned_gradients)


def gradient_errors(found: Results, expected: Results) -> tuple[dict[str, float], dict[str, float]]:
    """Relative distance of each parameter's gradient; those of the heads in `BINNED` apart.

    Args:
        found: on the device.
        expected: on the CPU.
    """
    norms = {name: float(value.norm()) for name, value in expected.gradients.items()}
    floor = SMALLEST * max(norms.values())
    off = {
        name: float((found.gradients[name] - value).norm()) / max(norms[name], floor)
        for name, value in expected.gradients.items()
    }
    binned = {k for k in off if k.split(".")[0].removesuffix("_head") in BINNED}
    sharp = {k: value for k, value in off.items() if k not in binned}
    return sharp, {k: off[k] for k in binned}


def bf16_limits(rounded: Results, expected: Results) -> Limits:
    """Limits for bfloat16 on the device, from what it does on the CPU.

    Args:
        rounded: in bfloat16 on the CPU.
        expected: in float32 on the CPU.
    """
    terms = {k: _relative(rounded.terms[k], value) for k, value in expected.terms.items()}
    logits = (_largest(rounded.logits[k] - value) for k, value in expected.logits.items())
    sharp, binned = gradient_errors(rounded, expected)
    return Limits(
        positions=BF16_FACTOR * farthest(rounded.positions, expected.positions),
        logits=BF16_FACTOR * max(logits),
        losses=BF16_FACTOR * max(v for k, v in terms.items() if k not in BINNED),
        binned=BF16_FACTOR * max(v for k, v in terms.items() if k in BINNED),
        gradients=BF16_FACTOR * max(sharp.values()),
        binned_gradients=BF16_FACTOR * max(binned.values()),
    )


def with_gradient(name: str, expected: Results) -> Row:
    """Most parameters must have a gradient, or comparing gradients would say nothing.

    Args:
        name: of the row.
        expected: on the CPU.
    """
    without = [k for k, value in expected.gradients.items() if not value.any()]
    share = 1 - len(without) / len(expected.gradients)
    detail = f"{len(expected.gradients)} parameters"
    if without:
        detail += f", none for {', '.join(without)} (first pass)"
    return at_least(name, share, 0.95, detail=detail)


def farthest(found: Tensor, expected: Tensor) -> float:
    """Largest distance of an atom from where it should be, in Å; NaN counts as such.

    Args:
        found: coordinates (..., 3).
        expected: the same.
    """
    return float((found - expected).norm(dim=-1).max())


def worst(name: str, errors: dict[str, float], limit: float) -> Row:
    """A row of the largest error, which it names; NaN is the largest.

    Args:
        name: of the row.
        errors: by what they are of.
        limit: the largest that passes.
    """
    # max() would pass over NaN.
    key = max(errors, key=lambda key: errors[key] if errors[key] == errors[key] else torch.inf)
    return at_most(name, errors[key], limit, detail=f"worst of {len(errors)}: {key}")


@contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    """Float32's matrix products for a while: highest without TF32, high with it.

    Args:
        name: as `torch.set_float32_matmul_precision` takes it.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().float().cpu()


def _largest(difference: Tensor) -> float:
    return float(difference.abs().max())


def _relative(found: Tensor, expected: Tensor) -> float:
    return _largest(found - expected) / max(_largest(expected), 1e-6)
