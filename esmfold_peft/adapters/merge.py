"""Writes an adapter into the weights that it adapts, and takes it out again exactly."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from esmfold_peft.adapters.base import AdaptedModel, Adapter
from esmfold_peft.config import Target


@dataclass(frozen=True, eq=False)
class Merged:
    """What a merge needs to be undone.

    Attributes:
        adapter: the adapter that was detached.
        originals: the weights as they were.
        rounding: the largest share of an update, by norm, that rounding to the weights' type lost.
    """

    adapter: Adapter
    originals: dict[tuple[int, Target], Float[Tensor, "d d"]]
    rounding: float


@torch.no_grad()
def merge(lm: AdaptedModel) -> Merged:
    """Adds every ΔW to its weight in float32 and detaches the adapter.

    Args:
        lm: a language model with an adapter; its weights change in place.

    Returns:
        The originals, for `unmerge`. A bfloat16 model has `rounding` near 1 where updates are below
        its resolution, 0.4 % of a weight.

    Raises:
        ValueError: the model has no adapter.
    """
    adapter = lm.adapter
    if adapter is None:
        raise ValueError("the language model has no adapter to merge")
    originals, rounding = {}, 0.0
    for layer, target in adapter.matrices():
        weight = lm.projection(layer, target).weight
        original = originals[layer, target] = weight.detach().clone()
        delta = adapter.delta_weight(layer, target)
        weight.copy_(original.float() + delta)
        lost, norm = (weight.float() - original.float() - delta).norm(), delta.norm()
        rounding = max(rounding, float(lost / norm) if norm else 0.0)
    lm.adapter = None
    return Merged(adapter, originals, rounding)


@torch.no_grad()
def unmerge(lm: AdaptedModel, merged: Merged) -> None:
    """Restores the weights bit for bit and attaches the adapter again.

    Args:
        lm: the language model that was merged.
        merged: what `merge` returned.
    """
    if lm.adapter is not None:
        raise ValueError("the language model has an adapter already")
    for (layer, target), original in merged.originals.items():
        lm.projection(layer, target).weight.copy_(original)
    lm.adapter = merged.adapter
