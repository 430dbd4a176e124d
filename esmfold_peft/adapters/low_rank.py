"""Adapters whose update of a matrix is a product of two thin factors: x·ΔW = (x·a)·g.

ΔW is never formed in training. Whatever a method's tensors are, once in a forward pass they are
folded into a and g of every matrix; what a layer costs is then the same for all of them.

Why factored, not merged once a step into W + ΔW. For one matrix (d x d), rank r and N tokens, in
multiplications: factored 2·N·d·r forward, for x·a and z·g, and 4·N·d·r backward. Merged saves the
forward and N·d·r of the backward pass (the product dz·aᵀ), and costs d²·r for ΔW and, in reads and
writes, 3·d² numbers a matrix. At ESM-2 35M, r = 8 and N = 1024 the six products are 23.6 M
multiplications of 472 M (5 %), the saving 11.8 M, the cost 1.8 M: merging would pay by 2 % at most.
But bfloat16 products would round away an update below 0.4 % of a weight, ZeRO stage 3 would have to
gather weights outside their modules, and each layer would keep a second copy of its weights for the
backward pass. So training and prediction are factored; `merge` is for what is done once.
"""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from esmfold_peft.adapters.base import (
    Adaptation,
    AdaptedModel,
    Adapter,
    Group,
    MergedPart,
    by_layer,
    wide,
)
from esmfold_peft.config import Target


@dataclass(frozen=True, eq=False)
class Pair:
    """The update of one matrix in all layers, scale included: ΔWᵀ = a·g.

    Attributes:
        a: faces the input; of length 1 where all layers share it.
        g: faces the output.
    """

    a: Float[Tensor, "#l i r"]
    g: Float[Tensor, "l r o"]

    def dense(self, layer: int) -> Float[Tensor, "o i"]:
        """ΔW of one layer, (out, in) as in `nn.Linear`."""
        return (self.a[layer % len(self.a)] @ self.g[layer]).T


class LowRankAdaptation(Adaptation):
    """Thin factors of every layer and group.

    Args:
        factors: for each adapted group the a and g of its layers, as `fold_group` makes them.
    """

    def __init__(self, factors: dict[Group, tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]) -> None:
        self.factors = factors

    def output(
        self,
        layer: int,
        group: Group,
        x: Float[Tensor, "t i"],
        y: Float[Tensor, "t w"],
        matrices: nn.Module,
    ) -> Float[Tensor, "t n o"]:
        """See `Adaptation`."""
        if group in self.factors:
            a, g = self.factors[group]
            return add_product(x, y, a[layer], g[layer], len(group))
        return y.unflatten(-1, (len(group), -1))


class LowRankAdapter(Adapter):
    """An adapter that is linear in the input."""

    @abstractmethod
    def factors(self) -> dict[Target, Pair]:
        """Both factors of every adapted matrix, in float32."""

    def shares_input(self, group: Group) -> bool:
        """Whether the matrices of a group have the same a, so that one x·a serves them all."""
        return False

    def forward(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """See `Adapter`: a and g of each adapted group."""
        pairs = self.factors()
        folded: list[Tensor] = []
        for group in self.groups():
            members = [pairs.get(target) for target in group]
            folded += fold_group(members, shared=self.shares_input(group))
        return tuple(tensor.to(dtype) for tensor in folded)

    def adaptation(self, folded: tuple[Tensor, ...]) -> Adaptation:
        """See `Adapter`."""
        layers = self.shape.layers
        split = [by_layer(tensor, layers) for tensor in folded]
        return LowRankAdaptation(
            {group: (split[2 * i], split[2 * i + 1]) for i, group in enumerate(self.groups())}
        )

    def delta_weight(self, layer: int, target: Target) -> Float[Tensor, "o i"]:
        """The dense ΔW of one matrix in float32, (out, in) as in `nn.Linear`.

        Args:
            layer: 0-based layer.
            target: one of `targets`.
        """
        with torch.autocast(next(self.parameters()).device.type, enabled=False):
            return self.factors()[target].dense(layer)

    def merged(self, lm: AdaptedModel) -> Iterator[MergedPart]:
        """See `Adapter`."""
        pairs = self.factors()
        for layer, target in self.matrices():
            weight, bias = wide(lm.weight(layer, target)), wide(lm.bias(layer, target))
            yield MergedPart(layer, target, weight + pairs[target].dense(layer), bias)


def fold_group(members: list[Pair | None], *, shared: bool) -> tuple[Tensor, Tensor]:
    """The factors of the n matrices of a group, zero for those that are not adapted.

    Args:
        members: both factors of each matrix, or None.
        shared: all have the same a.

    Returns:
        a (l|1, i, p·r) and g (l, p, r, n·o / p), with p = 1 if a is shared and n if not.
    """
    some = cast(Pair, next(pair for pair in members if pair is not None))
    absent = Pair(torch.zeros_like(some.a), torch.zeros_like(some.g))
    pairs = [absent if pair is None else pair for pair in members]
    if shared or len(pairs) == 1:
        return some.a, torch.cat([pair.g for pair in pairs], dim=-1)[:, None]
    return torch.cat([pair.a for pair in pairs], dim=-1), torch.stack([p.g for p in pairs], dim=1)


def add_product(
    x: Float[Tensor, "t i"],
    y: Float[Tensor, "t w"],
    a: Float[Tensor, "*b i k"],
    g: Float[Tensor, "*b p r q"],
    n: int,
) -> Float[Tensor, "t n o"]:
    """Y + x·a·g for a group of n matrices.

    Args:
        x: input of the tokens; with factors for each of b sequences, the sequences' tokens one
            after the other, equally many.
        y: output so far, side by side; overwritten where that saves a copy.
        a: first factor, those of p = 1 or n matrices side by side.
        g: second factor, for p = 1 those of the n matrices side by side.
        n: matrices of the group.
    """
    p, r = g.shape[-3:-1]
    if g.ndim == 4:
        b = len(g)
        z, blocks = x.unflatten(0, (b, -1)) @ a, y.unflatten(0, (b, -1))
        if p == 1:
            blocks.baddbmm_(z, g.squeeze(1))
            return y.unflatten(-1, (n, -1))
        z = z.unflatten(-1, (p, r)).transpose(1, 2)
        added = (z @ g).transpose(1, 2).flatten(2)
        return (blocks + added).flatten(0, 1).unflatten(-1, (n, -1))
    z = x @ a
    if p == 1:
        return y.addmm_(z, g.squeeze(0)).unflatten(-1, (n, -1))
    outputs, z = y.unflatten(-1, (n, -1)).transpose(0, 1), z.unflatten(-1, (n, r)).transpose(0, 1)
    return torch.baddbmm(outputs, z, g).transpose(0, 1)
