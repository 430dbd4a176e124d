"""Loss of the predicted distance distribution."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from esmfold_peft.geometry.distances import pairwise_distances

FIRST_BREAK = 2.3125
LAST_BREAK = 21.6875
"""Bounds between the first two and the last two bins, in Å (AF2: 0.3125 Å a bin at 64 bins)."""


def distogram_loss(
    logits: Float[Tensor, "b n n bins"],
    *,
    cb: Float[Tensor, "b n 3"],
    mask: Bool[Tensor, "b n"],
) -> Float[Tensor, "b"]:
    """Cross entropy of the distances between virtual Cβ (AF2 Suppl. 1.9.8).

    Averaged over ordered pairs of known residues; 0 for a chain without any.

    Args:
        logits: over distance bins, equally wide but for the first and the last, which are open.
        cb: true Cβ, built from N, Cα and C, in Å; anything where masked.
        mask: residues whose Cβ is known.
    """
    # DISCREPANCY: AF2 takes the atom Cβ, and Cα of glycine. Virtual Cβ is known wherever the
    # backbone is, so that chains without side chains train the head too.
    known = mask[:, :, None] & mask[:, None, :]
    bins = logits.shape[-1]
    breaks = torch.linspace(FIRST_BREAK, LAST_BREAK, bins - 1, dtype=cb.dtype, device=cb.device)
    cb = torch.where(mask[..., None], cb, 0.0)
    distance = pairwise_distances(cb, cb)
    target = torch.bucketize(distance, breaks)
    error = F.cross_entropy(logits.float().flatten(0, 2), target.flatten(), reduction="none")
    # As in AF2's code, the diagonal (always the first bin) is in the mean.
    return (error.view_as(distance) * known).sum((1, 2)) / known.sum((1, 2)).clamp(min=1)
