"""Losses of the predicted confidence."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from esmfold_peft.geometry.atoms import atom14_to_atom37_mask
from esmfold_peft.geometry.tables import tables
from esmfold_peft.losses.resolution import within_range
from esmfold_peft.metrics.lddt import lddt, lddt_all_atom


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
    known = ~score.isnan() & within_range(resolution, resolution_range)[:, None]
    # A NaN coordinate has lDDT 0 by definition: say that it is broken instead of teaching it.
    error = _cross_entropy(logits, score).masked_fill(predicted_ca.isnan().any(-1), torch.nan)
    return (error * known).sum(-1) / known.sum(-1).clamp(min=1)


def atom_plddt_loss(
    logits: Float[Tensor, "b n 37 bins"],
    *,
    predicted: Float[Tensor, "b n 14 3"],
    true: Float[Tensor, "b n 14 3"],
    atom_mask: Bool[Tensor, "b n 14"],
    aatype: Int[Tensor, "b n"],
    resolution: Float[Tensor, "b"],
    resolution_range: tuple[float, float] | None,
) -> Float[Tensor, "b"]:
    """Cross entropy of the all-atom lDDT that each predicted atom has.

    For a head with a distribution for every atom. ESMFold's released head is one (37 atoms x 50
    bins); what it was trained on was never published, and this target is our choice. Averaged over
    atoms that have a score, ambiguous ones under the name that fits the prediction
    (`metrics.lddt.lddt_all_atom`); otherwise as `plddt_loss`.

    Args:
        logits: over equal bins of lDDT from 0 to 1, by atom37 column.
        predicted: atom14 coordinates of the same prediction, in Å.
        true: atom14 coordinates in Å; anything where masked.
        atom_mask: known atoms.
        aatype: 0 to 20.
        resolution: Å; NaN if unknown.
        resolution_range: lowest and highest resolution that counts, in Å, limits included; None:
            every chain.
    """
    predicted = predicted.detach()
    score = lddt_all_atom(predicted, true, atom_mask, aatype=aatype).per_atom
    known = atom14_to_atom37_mask(aatype, ~score.isnan())
    known = known & within_range(resolution, resolution_range)[:, None, None]
    broken = atom14_to_atom37_mask(aatype, predicted.isnan().any(-1))
    score = score.take_along_dim(tables(aatype.device).atom37_to_atom14[aatype], dim=2)
    error = _cross_entropy(logits, score).masked_fill(broken, torch.nan)
    return (error * known).sum((1, 2)) / known.sum((1, 2)).clamp(min=1)


def _cross_entropy(
    logits: Float[Tensor, "*batch bins"], score: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """Cost of the bin of every score; that of bin 0, to be masked, where the score is NaN."""
    bins = logits.shape[-1]
    target = (score.nan_to_num() * bins).long().clamp(max=bins - 1)
    with torch.autocast(logits.device.type, enabled=False):
        error = F.cross_entropy(logits.float().flatten(0, -2), target.flatten(), reduction="none")
    return error.view_as(score)
