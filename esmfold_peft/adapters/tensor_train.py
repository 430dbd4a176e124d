"""Matrices as tensor trains, one train a layer (Oseledets 2011).

A matrix is reshaped to n small modes and held as n cores; core i has shape (ρ, k, ρ') with bonds ρ
to its neighbours. A stack of layers is one tensor (layers, ρ, k, ρ') for each core.
"""

from itertools import pairwise
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

_ZERO = 1e-10
"""Singular values below this share of the largest are rounding, in float64."""


def mode_sizes(n: int) -> tuple[int, ...]:
    """The three factors of n with the smallest sum, largest first, without ones.

    DISCREPANCY: LoReTTA and TT-LoRA list shapes for the widths of their models, none of ESM-2's but
    1280. 480 is 10 · 8 · 6 here, 640 is 10 · 8 · 8, 1280 is 16 · 10 · 8 and 2560 is 16 · 16 · 10.
    """
    triples = [
        (n // (a * b), b, a)
        for a in range(1, round(n ** (1 / 3)) + 1)
        if n % a == 0
        for b in range(a, int((n // a) ** 0.5) + 1)
        if n // a % b == 0
    ]
    return tuple(size for size in min(triples, key=sum) if size > 1)


def bonds(modes: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """Sizes of the n + 1 bonds of a train, 1 at both ends.

    No bond is wider than what the modes on its sides can use: beyond that the train would have more
    numbers than it can express.

    DISCREPANCY: LoReTTA's code, and TT-LoRA's where it draws cores directly, give every bond r.
    The wider bonds reach no further matrix, but count as trained numbers.
    """
    cuts = range(len(modes) + 1)
    return tuple(min(rank, prod(modes[:cut]), prod(modes[cut:])) if cut else 1 for cut in cuts)


def core_shapes(modes: tuple[int, ...], rank: int) -> list[tuple[int, int, int]]:
    """Shapes (ρ, k, ρ') of the cores."""
    ends = pairwise(bonds(modes, rank))
    return [(left, mode, right) for (left, right), mode in zip(ends, modes, strict=True)]


def random_cores(
    layers: int, modes: tuple[int, ...], rank: int, std: float
) -> list[Float[Tensor, "l _ _ _"]]:
    """Normal cores whose train has entries of standard deviation `std` (LoReTTA's start)."""
    return [
        torch.randn(layers, *shape) * std ** (1 / len(modes)) / shape[2] ** 0.5
        for shape in core_shapes(modes, rank)
    ]


def contract(cores: list[Tensor], *, fastest_first: bool = False) -> Float[Tensor, "l p n q"]:
    """The product of a run of cores, their modes as one dimension, the outer bonds kept.

    The first core's mode is the slowest index of the result; if `fastest_first`, the fastest.
    """
    whole = cores[0]
    for core in cores[1:]:
        order = "lpkq,lqjr->lpjkr" if fastest_first else "lpkq,lqjr->lpkjr"
        whole = torch.einsum(order, whole, core).flatten(2, 3)
    return whole


def tt_svd(
    tensor: Float[Tensor, "n"], modes: tuple[int, ...], rank: int | None
) -> list[Float[Tensor, "_ _ _"]]:
    """The cores of a tensor by successive SVDs (Oseledets 2011, Alg. 1).

    All cores but the last have orthonormal columns; the last one has the size. The first mode is
    the slowest. Bonds are cut to the rank; None keeps all that is not zero to the precision.
    """
    cores, rest = [], tensor[None]
    for mode in modes[:-1]:
        rest = rest.reshape(len(rest) * mode, -1)
        basis = _basis(rest, rank)
        cores.append(basis.unflatten(0, (-1, mode)))
        rest = basis.T @ rest
    return [*cores, rest.unflatten(1, (modes[-1], 1))]


def _basis(x: Float[Tensor, "m n"], rank: int | None) -> Float[Tensor, "m k"]:
    """The first left singular vectors of a matrix, at least one."""
    if rank is not None and x.shape[0] <= x.shape[1]:
        # By x·xᵀ, which is wide: several times as fast, and exact enough where bonds are cut.
        return torch.linalg.eigh(x @ x.T)[1].flip(1)[:, :rank]
    left, sizes, _ = torch.linalg.svd(x, full_matrices=False)
    kept = int((sizes > _ZERO * sizes[0]).sum()) if rank is None else rank
    return left[:, : max(kept, 1)]
