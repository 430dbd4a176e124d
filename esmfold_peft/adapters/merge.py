"""Writes an adapter into the weights that it adapts, and takes it out again exactly."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from esmfold_peft.adapters.base import AdaptedModel, Adapter, MergedPart, wide
from esmfold_peft.config import Target
from esmfold_peft.config.adapter import WITHOUT_UPDATE
from esmfold_peft.errors import UserError

MOST_LOST = 0.1
"""Largest rounding of weights, as a share of the update in them, by norm."""


@dataclass(frozen=True, eq=False)
class CastPart(MergedPart):
    """One matrix and its bias with their update; rounding `lost` that share of it, by norm."""

    lost: float


@dataclass(frozen=True, eq=False)
class Merged:
    """All that `unmerge` needs: the detached adapter, and weights and biases as they were.

    Rounding to the weights' type `lost` at most that share of an update, by norm.
    """

    adapter: Adapter
    originals: dict[tuple[int, Target], tuple[Float[Tensor, "o i"], Float[Tensor, "o"]]]
    lost: float


@torch.no_grad()
def merged_parts(lm: AdaptedModel, dtype: torch.dtype) -> list[CastPart]:
    """Every adapted matrix with its update, computed in float32 and then rounded to `dtype`.

    Raises:
        UserError: the adapter cannot be merged, an update is not finite, or rounding changes
            weights by more than a tenth of an update (a bfloat16 weight does not see updates below
            0.4 % of it).
        ValueError: the model has no adapter.
    """
    if lm.adapter is None:
        raise ValueError("the language model has no adapter to merge")
    kind = lm.adapter.config.kind
    with torch.autocast(lm.weight(0, "query").device.type, enabled=False):
        return [_cast(lm, kind, part, dtype) for part in lm.adapter.merged(lm)]


def _cast(lm: AdaptedModel, kind: str, part: MergedPart, dtype: torch.dtype) -> CastPart:
    exact = (part.weight, part.bias)
    rounded = (part.weight.to(dtype), part.bias.to(dtype))
    before = (lm.weight(part.layer, part.target), lm.bias(part.layer, part.target))
    change, error = _distance(exact, before), _distance(exact, rounded)
    place = f"of {part.target} in layer {part.layer}"
    if not math.isfinite(change):
        raise UserError(f"merging {kind}: the update {place} is not finite")
    lost = error / change if change else 0.0
    if not lost <= MOST_LOST:
        raise UserError(
            f"merging {kind} into {str(dtype).removeprefix('torch.')} weights"
            f" rounds them by {lost:.2g} times the update {place}; at most {MOST_LOST} is accepted;"
            " float32 loses less"
        )
    return CastPart(part.layer, part.target, *rounded, lost)


def _distance(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> float:
    """Norm of the difference of weight and bias together."""
    parts = [(wide(a) - wide(b)).norm() for a, b in zip(ours, theirs, strict=True)]
    return float(torch.stack(parts).norm())


@torch.no_grad()
def relative_update(lm: AdaptedModel) -> Float[Tensor, ""] | None:
    """The largest ‖ΔW‖ / ‖W‖ of all adapted matrices, by Frobenius norm.

    Far above 1 the pretrained weights hardly count any more, although the loss stays finite: layer
    norms bring every activation back to size.

    Returns:
        In float32; None where no ΔW can be measured: without an adapter, and for the kinds of
        `WITHOUT_UPDATE`.
    """
    if lm.adapter is None or lm.adapter.config.kind in WITHOUT_UPDATE:
        return None
    ratios = []
    with torch.autocast(lm.weight(0, "query").device.type, enabled=False):
        for part in lm.adapter.merged(lm):
            before = wide(lm.weight(part.layer, part.target))
            ratios.append((part.weight - before).norm() / before.norm())
    return torch.stack(ratios).max()


@torch.no_grad()
def merge(lm: AdaptedModel) -> Merged:
    """Writes every update into its weight, rounded to the weights' type, and detaches the adapter.

    It raises what `merged_parts` does; the model is then as it was.
    """
    parts = merged_parts(lm, lm.weight(0, "query").dtype)
    adapter = lm.adapter
    assert adapter is not None
    originals = {}
    for part in parts:
        weight, bias = lm.weight(part.layer, part.target), lm.bias(part.layer, part.target)
        originals[part.layer, part.target] = weight.clone(), bias.clone()
        weight.copy_(part.weight)
        bias.copy_(part.bias)
    lm.adapter = None
    return Merged(adapter, originals, max(part.lost for part in parts))


@torch.no_grad()
def unmerge(lm: AdaptedModel, merged: Merged) -> None:
    """Undoes `merge` bit for bit and attaches the adapter again, on the model's device."""
    if lm.adapter is not None:
        raise ValueError("the language model has an adapter already")
    for (layer, target), (weight, bias) in merged.originals.items():
        lm.weight(layer, target).copy_(weight)
        lm.bias(layer, target).copy_(bias)
    lm.adapter = merged.adapter.to(lm.weight(0, "query").device)
