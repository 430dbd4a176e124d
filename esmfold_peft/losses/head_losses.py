"""Losses of the heads: distances, confidence, and which atoms the experiment resolved.

Each is a mean over all that its mask selects: 0 for a chain without any, NaN if the prediction has
a NaN. Coordinates get no gradient. Logarithms are in float32, also under autocast.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from esmfold_peft.geometry.atoms import atom14_to_atom37_mask
from esmfold_peft.geometry.distances import pairwise_distances
from esmfold_peft.geometry.rigid import Rigid
from esmfold_peft.geometry.tables import tables
from esmfold_peft.metrics.lddt import lddt, lddt_all_atom
from esmfold_peft.model.confidence import aligned_error_breaks

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

    Args:
        logits: over distance bins, of equal width except the first and the last, which are open.
        cb: true Cβ, built from N, Cα and C, in Å; anything where masked.
        mask: residues whose Cβ is known.
    """
    # DISCREPANCY: AF2 takes the atom Cβ, and Cα of glycine. Virtual Cβ is known wherever the
    # backbone is, so that chains without side chains train the head too.
    bins = logits.shape[-1]
    breaks = torch.linspace(FIRST_BREAK, LAST_BREAK, bins - 1, dtype=cb.dtype, device=cb.device)
    cb = torch.where(mask[..., None], cb, 0.0)
    target = torch.bucketize(pairwise_distances(cb, cb), breaks)
    return _mean(_cross_entropy(logits, target), _pairs(mask))


def plddt_loss(
    logits: Float[Tensor, "b n bins"],
    *,
    predicted_ca: Float[Tensor, "b n 3"],
    true_ca: Float[Tensor, "b n 3"],
    mask: Bool[Tensor, "b n"],
) -> Float[Tensor, "b"]:
    """Cross entropy of the lDDT-Cα that the prediction has (AF2 Suppl. Alg. 29).

    Args:
        logits: over equal bins of lDDT-Cα from 0 to 1.
        predicted_ca: Cα of the same prediction, in Å.
        true_ca: Å; anything where masked.
        mask: residues whose Cα is known and counts.
    """
    predicted_ca = predicted_ca.detach()
    score = lddt(predicted_ca, true_ca, mask).per_residue
    error = _lddt_error(logits, score, predicted_ca.isnan().any(-1))
    # DISCREPANCY: AF2 gives a residue without neighbours the target 1; here it has no target.
    return _mean(error, ~score.isnan())


def atom_plddt_loss(
    logits: Float[Tensor, "b n 37 bins"],
    *,
    predicted: Float[Tensor, "b n 14 3"],
    true: Float[Tensor, "b n 14 3"],
    atom_mask: Bool[Tensor, "b n 14"],
    aatype: Int[Tensor, "b n"],
) -> Float[Tensor, "b"]:
    """Cross entropy of the all-atom lDDT that each predicted atom has.

    For a head with a distribution for every atom. ESMFold's released head is one (37 atoms x 50
    bins); what it was trained on was never published, and this target is our choice. Ambiguous
    atoms have the name that fits the prediction (`metrics.lddt.lddt_all_atom`).

    Args:
        logits: over equal bins of lDDT from 0 to 1, by atom37 column.
        predicted: atom14 coordinates of the same prediction, in Å.
        true: atom14 coordinates in Å; anything where masked.
        atom_mask: atoms that are known and count.
        aatype: 0 to 20.
    """
    predicted = predicted.detach()
    score = lddt_all_atom(predicted, true, atom_mask, aatype=aatype).per_atom
    known = atom14_to_atom37_mask(aatype, ~score.isnan())
    broken = atom14_to_atom37_mask(aatype, predicted.isnan().any(-1))
    score = score.take_along_dim(tables(aatype.device).atom37_to_atom14[aatype], dim=2)
    return _mean(_lddt_error(logits, score, broken), known)


def resolved_loss(
    logits: Float[Tensor, "b n 37"],
    *,
    exists: Bool[Tensor, "b n 37"],
    resolved: Bool[Tensor, "b n 37"],
) -> Float[Tensor, "b"]:
    """Cross entropy of whether each atom has coordinates (AF2 Suppl. 1.9.10, eq. 43).

    Args:
        logits: of the probability that the atom is resolved, by atom37 column.
        exists: atoms that the residue type has and that count. Where a data set stores the backbone
            alone, leave the side chains out: the experiment may have resolved them.
        resolved: atoms with known coordinates; anything where the atom does not exist.
    """
    with torch.autocast(logits.device.type, enabled=False):
        error = F.binary_cross_entropy_with_logits(
            logits.float(), resolved.float(), reduction="none"
        )
    return _mean(error, exists)


def pae_loss(
    logits: Float[Tensor, "b n n bins"],
    *,
    predicted_frames: Rigid,
    true_frames: Rigid,
    mask: Bool[Tensor, "b n"],
) -> Float[Tensor, "b"]:
    """Cross entropy of the aligned errors that the prediction has (AF2 Suppl. 1.9.7).

    Args:
        logits: [i, j] over bins of the error of residue j seen from residue i
            (`model.confidence`).
        predicted_frames: backbone frames of the same prediction, of shape (b, n), with their
            origin at Cα, in Å.
        true_frames: of shape (b, n); anything where masked.
        mask: residues whose true frame is known and counts.
    """
    error = _aligned_error(predicted_frames, true_frames, mask)
    breaks = aligned_error_breaks(logits.shape[-1], logits.device)
    cost = _cross_entropy(logits, torch.bucketize(error, breaks.to(error.dtype)))
    # NaN would count as the largest error: the loss becomes NaN instead of teaching it.
    return _mean(cost.masked_fill(error.isnan(), torch.nan), _pairs(mask))


@torch.no_grad()
def _aligned_error(
    predicted: Rigid, true: Rigid, mask: Bool[Tensor, "b n"]
) -> Float[Tensor, "b n n"]:
    """Error of every Cα (last axis) seen from every frame, in Å; meaningless where masked."""
    with torch.autocast(mask.device.type, enabled=False):
        here, there = (
            frames[..., None].apply_inverse(frames.translation[:, None])
            for frames in (predicted, true)
        )
        # Only the truth is replaced where unknown; a NaN of the prediction must stay one.
        there = torch.where(_pairs(mask)[..., None], there, 0.0)
        return torch.linalg.vector_norm(here - there, dim=-1)


def _lddt_error(
    logits: Float[Tensor, "*batch bins"],
    score: Float[Tensor, "*batch"],
    broken: Bool[Tensor, "*batch"],
) -> Float[Tensor, "*batch"]:
    """Cost of the bin of every score. A score of NaN has the cost of bin 0: mask it."""
    bins = logits.shape[-1]
    error = _cross_entropy(logits, (score.nan_to_num() * bins).long().clamp(max=bins - 1))
    # A NaN coordinate has lDDT 0 by definition: the loss becomes NaN instead of teaching it.
    return error.masked_fill(broken, torch.nan)


def _cross_entropy(
    logits: Float[Tensor, "*batch bins"], target: Int[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    with torch.autocast(logits.device.type, enabled=False):
        error = F.cross_entropy(logits.float().flatten(0, -2), target.flatten(), reduction="none")
    return error.view_as(target)


def _pairs(mask: Bool[Tensor, "b n"]) -> Bool[Tensor, "b n n"]:
    """Ordered pairs. As in AF2's code the diagonal, which is always in the first bin, counts."""
    return mask[:, :, None] & mask[:, None, :]


def _mean(error: Float[Tensor, "b *rest"], known: Bool[Tensor, "b *rest"]) -> Float[Tensor, "b"]:
    rest = tuple(range(1, error.ndim))
    return (error * known).sum(rest) / known.sum(rest).clamp(min=1)
