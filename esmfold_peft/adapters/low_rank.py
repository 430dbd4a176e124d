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
backward pass. So training and prediction are factored; `merge` is for weights that stay.
"""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from esmfold_peft.adapters.base import AdaptedModel, Adapter, Factors, Group, MergedPart, wide
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


class LowRankAdapter(Adapter):
    """An adapter that is linear in the input: a method registers its tensors, and gives `factors`.

    Its folded factors of a group are a (i, p·r) and g (p, r, n·o / p) of its n matrices, with p = 1
    if all have the same a and p = n if not; both are zero for a matrix that is not adapted.
    """

    @abstractmethod
    def factors(self) -> dict[Target, Pair]:
        """Both factors of every adapted matrix, in float32."""

    def shares_input(self, group: Group) -> bool:
        """Whether the matrices of a group have the same a, so that one x·a serves them all."""
        return False

    def forward(self, dtype: torch.dtype) -> tuple[Factors, ...]:
        """See `Adapter`."""
        pairs = self.factors()
        folded = (self._side_by_side(group, pairs) for group in self.groups())
        return tuple((a.to(dtype), g.to(dtype)) for a, g in folded)

    def _side_by_side(self, group: Group, pairs: dict[Target, Pair]) -> tuple[Tensor, Tensor]:
        some = pairs[self.members(group)[0]]
        absent = Pair(torch.zeros_like(some.a), torch.zeros_like(some.g))
        own = [pairs.get(target, absent) for target in group]
        if len(own) == 1 or self.shares_input(group):
            return some.a, torch.cat([pair.g for pair in own], dim=-1)[:, None]
        return torch.cat([pair.a for pair in own], dim=-1), torch.stack([p.g for p in own], dim=1)

    def change_output(
        self, group: Group, factors: Factors, x: Tensor, y: Tensor, matrices: nn.Module
    ) -> Tensor:
        """See `Adapter`."""
        a, g = factors
        return add_product(x, y, a, g, len(group))

    def delta_weight(self, layer: int, target: Target) -> Float[Tensor, "o i"]:
        """The dense ΔW of one adapted matrix in float32, (out, in) as in `nn.Linear`."""
        with torch.autocast(next(self.parameters()).device.type, enabled=False):
            return self.factors()[target].dense(layer)

    def merged(self, lm: AdaptedModel) -> Iterator[MergedPart]:
        """See `Adapter`."""
        pairs = self.factors()
        for layer, target in self.matrices():
            weight, bias = wide(lm.weight(layer, target)), wide(lm.bias(layer, target))
            yield MergedPart(layer, target, weight + pairs[target].dense(layer), bias)


def add_product(
    x: Float[Tensor, "t i"],
    y: Float[Tensor, "t w"],
    a: Float[Tensor, "*b i k"],
    g: Float[Tensor, "*b p r q"],
    n: int,
) -> Float[Tensor, "t n o"]:
    """Y + x·a·g for a group of n matrices (`LowRankAdapter`).

    y is overwritten where that saves a copy. With factors for each of b sequences, x has their
    tokens one sequence after the other, equally many.
    """
    p, r = g.shape[-3:-1]
    if g.ndim == 4:
        z, blocks = x.unflatten(0, (len(g), -1)) @ a, y.unflatten(0, (len(g), -1))
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
