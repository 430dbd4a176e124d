"""Dropout, drawn outside the modules that apply it.

A module then has the same dropout whether it is plain, compiled or computed again in the backward
pass, and a chain has the same in every micro-batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

Factors = tuple[Tensor | None, ...]
"""Factors of the updates of a block, in order; None: no dropout."""


class LayerDropout(NamedTuple):
    """Factors after attention and transition of a layer of the structure module."""

    attention: Float[Tensor, "b n c_s"] | None = None
    transition: Float[Tensor, "b n c_s"] | None = None


class PassDropout(NamedTuple):
    """All factors of a pass, in float32; None: no dropout.

    Their dimensions are chains, then residues (1 where residues share a factor), then channels.

    Attributes:
        blocks: those of the trunk's blocks, for the sites of `Stack.dropout_sites`.
        structure: those of the structure module's layers.
    """

    blocks: Any = None
    structure: tuple[LayerDropout, ...] | None = None

    def rows(self, part: slice, length: int) -> "PassDropout":
        """Views of the factors of some chains, cut to `length` residues."""

        def cut(factors: Tensor) -> Tensor:
            residues = (slice(length if size > 1 else 1) for size in factors.shape[1:-1])
            return factors[(part, *residues)]

        return tree_map_only(Tensor, cut, self)


@dataclass(frozen=True)
class Site:
    """A place where dropout acts.

    Attributes:
        shape: of a chain's factors.
        rate: share of zeros among them.
    """

    shape: tuple[int, ...]
    rate: float


def draw_factors(
    sites: Any,
    chains: int,
    device: torch.device,
    generators: Sequence[torch.Generator] | None = None,
) -> Any:
    """Draws the factors of all sites, each 0 or 1 / (1 - rate), at once for each chain.

    Args:
        sites: any nesting of `Site`.
        chains: how many.
        device: where they are drawn.
        generators: one for each chain, of that device; None: all chains draw from PyTorch's own.

    Returns:
        The same nesting of tensors; None at a site of rate 0.
    """
    leaves, nesting = tree_flatten(sites)
    drawn: list[Tensor | None] = [None] * len(leaves)
    rates = sorted({site.rate for site in leaves if site is not None and site.rate > 0})
    # Sites of one rate lie side by side: few operations make all factors of a pass.
    places = [[n for n, site in enumerate(leaves) if site and site.rate == r] for r in rates]
    sizes = [[math.prod(leaves[n].shape) for n in same] for same in places]
    count = sum(map(sum, sizes))
    if generators is None:
        numbers = torch.rand(chains, count, device=device)
    else:
        numbers = torch.stack(
            [torch.rand(count, device=device, generator=own) for own in generators]
        )
    for rate, part, same, own in zip(
        rates, numbers.split([sum(each) for each in sizes], 1), places, sizes, strict=True
    ):
        factors = (part >= rate).float().div_(1 - rate if rate < 1 else 1.0)
        for place, piece in zip(same, factors.split(own, 1), strict=True):
            drawn[place] = piece.view(-1, *leaves[place].shape)
    return tree_unflatten(drawn, nesting)


def drop(x: Tensor, factors: Tensor | None) -> Tensor:
    """Applies dropout, if there is one."""
    return x if factors is None else x * factors
