"""Names of ambiguous atoms as the prediction has them."""

from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from esmfold_peft.datasets.truth import GroundTruth, NamedAtoms
from esmfold_peft.geometry.ambiguity import is_ambiguous
from esmfold_peft.geometry.distances import pairwise_distances
from esmfold_peft.geometry.rigid import Rigid
from esmfold_peft.geometry.tables import tables
from esmfold_peft.protein.residues import AMBIGUOUS_ATOMS, ATOM14

_AMBIGUOUS = {
    ATOM14[letter].index(name)
    for letter, pairs in AMBIGUOUS_ATOMS.items()
    for pair in pairs
    for name in pair
}
_FIRST, _END = min(_AMBIGUOUS), max(_AMBIGUOUS) + 1
"""Columns of atom14 that hold an ambiguous atom in some residue: 6 to 9."""


@torch.no_grad()
def rename_ambiguous(
    truth: GroundTruth, predicted_positions: Float[Tensor, "b n 14 3"]
) -> GroundTruth:
    """Names ambiguous atoms (ASP, GLU, PHE, TYR) as the prediction does (AF2 Suppl. Alg. 26).

    Of the two namings of a residue, the one is taken whose distances to all atoms of unambiguous
    name fit the predicted distances better; the given one if they fit equally well. No gradient.

    Args:
        truth: of the same chains.
        predicted_positions: atom14 coordinates in Å.

    Returns:
        The truth with `atoms` and `alternative` exchanged in the renamed residues.
    """
    given, other = _misfits(truth, predicted_positions)
    swap = torch.zeros_like(truth.ca_mask).scatter(1, truth.ambiguous, other < given)
    return replace(
        truth,
        atoms=_choose(swap, truth.alternative, truth.atoms),
        alternative=_choose(swap, truth.atoms, truth.alternative),
    )


def _misfits(
    truth: GroundTruth, predicted: Float[Tensor, "b n 14 3"]
) -> tuple[Float[Tensor, "b r"], Float[Tensor, "b r"]]:
    """Deviation of distances from ambiguous to all unambiguous atoms under either naming.

    Summed by residue. The exchange of names moves no unambiguous atom, so the true distances of the
    other naming are those of the given one in another order.
    """
    ambiguous = is_ambiguous(truth.aatype)
    anchors = (truth.atoms.atom_mask & ~ambiguous).flatten(1)
    column = _of_residues(tables(truth.aatype.device).ambiguous_swap[truth.aatype], truth)
    there = _distances(truth.atoms.positions, truth)
    here = _distances(predicted, truth)
    misfits = []
    for atoms, distances in (
        (truth.atoms, there),
        (truth.alternative, _reordered(there, column - _FIRST)),
    ):
        deviation = ((here - distances).abs() * anchors[:, None, None]).sum(-1)
        misfits.append((deviation * _of_residues(atoms.atom_mask & ambiguous, truth)).sum(-1))
    return misfits[0], misfits[1]


def _distances(
    positions: Float[Tensor, "b n 14 3"], truth: GroundTruth
) -> Float[Tensor, "b r q p"]:
    """From those atoms of some residues that can be ambiguous to all atoms of their chains."""
    rows = _of_residues(positions, truth)
    distances = pairwise_distances(rows.flatten(1, 2), positions.flatten(1, 2))
    return distances.unflatten(1, rows.shape[1:3])


def _reordered(
    distances: Float[Tensor, "b r q p"], column: Int[Tensor, "b r q"]
) -> Float[Tensor, "b r q p"]:
    chain, residue = (torch.arange(n, device=column.device) for n in column.shape[:2])
    return distances[chain[:, None, None], residue[:, None], column]


def _of_residues(atoms: Tensor, truth: GroundTruth) -> Tensor:
    """The columns of atom14 that can be ambiguous, of the residues `truth.ambiguous`."""
    chain = torch.arange(len(atoms), device=atoms.device)[:, None]
    return atoms[chain, truth.ambiguous, _FIRST:_END]


def _choose(swap: Bool[Tensor, "b n"], yes: NamedAtoms, no: NamedAtoms) -> NamedAtoms:
    return NamedAtoms(
        positions=torch.where(swap[..., None, None], yes.positions, no.positions),
        atom_mask=torch.where(swap[..., None], yes.atom_mask, no.atom_mask),
        group_frames=Rigid(
            torch.where(
                swap[..., None, None, None], yes.group_frames.rotation, no.group_frames.rotation
            ),
            torch.where(
                swap[..., None, None], yes.group_frames.translation, no.group_frames.translation
            ),
        ),
        group_mask=torch.where(swap[..., None], yes.group_mask, no.group_mask),
    )
