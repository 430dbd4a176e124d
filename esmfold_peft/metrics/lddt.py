"""The local distance difference test: one definition for training, validation and commands."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from esmfold_peft.geometry.distances import pairwise_distances

THRESHOLDS = (0.5, 1.0, 2.0, 4.0)
"""A pair of atoms is preserved at each of these deviations of its distance, in Å."""

CUTOFF = 15.0
"""Pairs count whose reference distance is at most this, in Å."""

_CA = 1


@dataclass(frozen=True, eq=False)
class LDDT:
    """Scores of a batch of predictions, 0 to 1.

    Attributes:
        per_residue: mean over the pairs of each residue; NaN without pairs and where the reference
            has no atom.
        per_chain: mean over all pairs of the chain (the published score); NaN without pairs.
        pairs: reference pairs i < j within the cutoff.
    """

    per_residue: Float[Tensor, "b n"]
    per_chain: Float[Tensor, "b"]
    pairs: Int[Tensor, "b"]

    @property
    def mean_per_residue(self) -> Float[Tensor, "b"]:
        """Mean of the residues' scores, which weighs crowded residues less; NaN without pairs."""
        return self.per_residue.nanmean(-1)


@torch.no_grad()
def lddt(
    predicted: Float[Tensor, "b n 3"],
    true: Float[Tensor, "b n 3"],
    mask: Bool[Tensor, "b n"],
    *,
    predicted_mask: Bool[Tensor, "b n"] | None = None,
    cutoff: float = CUTOFF,
) -> LDDT:
    """Scores one atom of each residue (lDDT, Mariani et al. 2013) as OpenStructure and biotite do.

    Every pair of atoms present in the reference counts, neighbours in sequence too, if its
    reference distance is at most `cutoff`. The score is the share of pairs whose distance is
    preserved within 0.5, 1, 2 and 4 Å (limits included), averaged over the four. An atom that is
    missing in the prediction, or not finite, loses all its pairs. Stereochemistry is not checked.
    No gradient; the dtype is that of the coordinates.

    Args:
        predicted: coordinates of the prediction in Å.
        true: coordinates of the reference in Å; anything where masked.
        mask: atoms present in the reference.
        predicted_mask: atoms present in the prediction; None if all are.
        cutoff: inclusion radius in Å.
    """
    # DISCREPANCY: AF2 counts distances below the cutoff and deviations below the thresholds, and
    # gives a residue without pairs the score 1; the published metric includes the limits, and such
    # a residue has no score.
    true_distance = pairwise_distances(true, true)
    others = ~torch.eye(mask.shape[-1], dtype=torch.bool, device=mask.device)
    counted = mask[:, :, None] & mask[:, None, :] & others & (true_distance <= cutoff)
    deviation = (pairwise_distances(predicted, predicted) - true_distance).abs()
    found = counted
    if predicted_mask is not None:
        found = found & predicted_mask[:, :, None] & predicted_mask[:, None, :]
    preserved = sum((deviation <= threshold).to(true.dtype) for threshold in THRESHOLDS)
    kept = (preserved * found).sum(-1) / len(THRESHOLDS)
    # 0 / 0 is the NaN that says "no score".
    pairs = counted.sum(-1)
    return LDDT(kept / pairs, kept.sum(-1) / pairs.sum(-1), pairs.sum(-1) // 2)


def lddt_ca(
    predicted: Float[Tensor, "b n 14 3"],
    true: Float[Tensor, "b n 14 3"],
    atom_mask: Bool[Tensor, "b n 14"],
    *,
    predicted_atom_mask: Bool[Tensor, "b n 14"] | None = None,
) -> LDDT:
    """Computes lDDT-Cα in float64, for evaluation.

    Args:
        predicted: predicted atom14 coordinates in Å.
        true: reference atom14 coordinates in Å.
        atom_mask: atoms present in the reference.
        predicted_atom_mask: atoms present in the prediction; None if all are.
    """
    found = None if predicted_atom_mask is None else predicted_atom_mask[:, :, _CA]
    ca, true_ca = predicted[:, :, _CA].double(), true[:, :, _CA].double()
    return lddt(ca, true_ca, atom_mask[:, :, _CA], predicted_mask=found)
