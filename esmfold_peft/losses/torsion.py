"""Losses of the predicted torsion angles: (sin, cos) of ω, φ, ψ, χ1 to χ4."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_FIRST_CHI = 3

_NORM_EPS = 1e-6
"""Added to squared norms, so that the gradient is finite at 0."""


def chi_loss(
    torsions: Float[Tensor, "k b n 7 2"],
    *,
    true: Float[Tensor, "b n 7 2"],
    alternative: Float[Tensor, "b n 7 2"],
    mask: Bool[Tensor, "b n 7"],
) -> Float[Tensor, "b"]:
    """Squared error of (sin, cos) of the side-chain torsions (AF2 Suppl. Alg. 27).

    Of the two true values of a torsion that a turn by π leaves unchanged, the nearer counts.
    Averaged over known torsions and layers; 0 for a chain without any.

    Args:
        torsions: predicted after each layer, of norm 1.
        true: anything where masked.
        alternative: the same after the turn by π; equal to `true` where that is another structure.
        mask: torsions whose truth is known.
    """
    # DISCREPANCY: Alg. 27 sums over all seven torsions; the code of AF2 and OpenFold over χ1 to χ4,
    # since FAPE fixes the backbone.
    known = mask[:, :, _FIRST_CHI:]
    predicted = torsions[..., _FIRST_CHI:, :]
    errors = [
        (predicted - torch.where(known[..., None], value[:, :, _FIRST_CHI:], 0.0)).square().sum(-1)
        for value in (true, alternative)
    ]
    return _mean(torch.minimum(*errors), known)


def angle_norm_loss(
    unnormalized: Float[Tensor, "k b n 7 2"], mask: Bool[Tensor, "b n"]
) -> Float[Tensor, "b"]:
    """Distance from 1 of the norm of (sin, cos) before normalisation (AF2 Suppl. Alg. 27).

    It keeps the norms where the normalisation has useful gradients. Averaged over layers and all
    seven torsions of every residue that exists, resolved or not.
    """
    norm = torch.sqrt(unnormalized.square().sum(-1) + _NORM_EPS)
    return _mean((norm - 1).abs(), mask[..., None].expand(norm.shape[1:]))


def _mean(error: Float[Tensor, "k b n t"], mask: Bool[Tensor, "b n t"]) -> Float[Tensor, "b"]:
    count = len(error) * mask.sum((1, 2)).clamp(min=1)
    return (error * mask).sum((0, 2, 3)) / count
