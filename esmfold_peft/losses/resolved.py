"""Loss of the prediction of which atoms the experiment resolved."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from esmfold_peft.losses.resolution import within_range


def resolved_loss(
    logits: Float[Tensor, "b n 37"],
    *,
    exists: Bool[Tensor, "b n 37"],
    resolved: Bool[Tensor, "b n 37"],
    resolution: Float[Tensor, "b"],
    resolution_range: tuple[float, float] | None,
) -> Float[Tensor, "b"]:
    """Cross entropy of whether each atom has coordinates (AF2 Suppl. 1.9.10, eq. 43).

    Averaged over the atoms that exist. 0 for a chain without any, and for one whose resolution is
    outside the range or unknown; NaN if the prediction has a NaN. In float32, also under autocast.

    Args:
        logits: of the probability that the atom is resolved, by atom37 column.
        exists: atoms that the residue type has, without padding. Where a data set stores the
            backbone alone, leave the side chains out: that they are missing is not the experiment's
            doing.
        resolved: atoms with known coordinates; anything where the atom does not exist.
        resolution: Å; NaN if unknown.
        resolution_range: lowest and highest resolution that counts, in Å, limits included; None:
            every chain.
    """
    with torch.autocast(logits.device.type, enabled=False):
        error = F.binary_cross_entropy_with_logits(
            logits.float(), resolved.float(), reduction="none"
        )
    counted = exists & within_range(resolution, resolution_range)[:, None, None]
    return (error * counted).sum((1, 2)) / counted.sum((1, 2)).clamp(min=1)
