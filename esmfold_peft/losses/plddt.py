"""Loss of the predicted confidence."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from esmfold_peft.metrics.lddt import lddt


def plddt_loss(
    logits: Float[Tensor, "b n bins"],
    *,
    predicted_ca: Float[Tensor, "b n 3"],
    true_ca: Float[Tensor, "b n 3"],
    mask: Bool[Tensor, "b n"],
    resolution: Float[Tensor, "b"],
    resolution_range: tuple[float, float] | None,
) -> Float[Tensor, "b"]:
    """Cross entropy of the lDDT-Cα that the prediction has (AF2 Suppl. Alg. 29).

    Averaged over residues that have a score. 0 for a chain without any, and for one whose
    resolution is outside the range or unknown. The coordinates get no gradient; a NaN among them
    makes the loss NaN.

    Args:
        logits: over equal bins of lDDT-Cα from 0 to 1.
        predicted_ca: Cα of the same prediction, in Å.
        true_ca: Å; anything where masked.
        mask: residues whose Cα is known.
        resolution: Å; NaN if unknown.
        resolution_range: lowest and highest resolution that counts, in Å, limits included; None:
            every chain.
    """
    predicted_ca = predicted_ca.detach()
    score = lddt(predicted_ca, true_ca, mask).per_residue
    # DISCREPANCY: AF2 gives a residue without neighbours the target 1; here it has no target.
    known = ~score.isnan()
    bins = logits.shape[-1]
    target = (score.nan_to_num() * bins).long().clamp(max=bins - 1)
    error = F.cross_entropy(logits.float().flatten(0, 1), target.flatten(), reduction="none")
    # A NaN coordinate has lDDT 0 by definition: say that it is broken instead of teaching it.
    error = error.view_as(score).masked_fill(predicted_ca.isnan().any(-1), torch.nan)
    if resolution_range is not None:
        known = known & _within(resolution, resolution_range)[:, None]
    return (error * known).sum(-1) / known.sum(-1).clamp(min=1)


def _within(value: Float[Tensor, "b"], bounds: tuple[float, float]) -> Bool[Tensor, "b"]:
    # NaN, an unknown resolution, is within no bounds.
    return (value >= bounds[0]) & (value <= bounds[1])
