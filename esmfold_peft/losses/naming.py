"""Names of ambiguous atoms as the prediction has them."""

from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from esmfold_peft.datasets.truth import GroundTruth, NamedAtoms
from esmfold_peft.geometry.atoms import is_ambiguous
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

    Of the two namings of a residue, takes the one whose distances to all atoms of unambiguous name
    fit the predicted distances better; the given one if both fit equally well. In the renamed
    residues `atoms` and `alternative` are exchanged. No gradient.
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
    anchors = (truth.atoms.atom_mask & ~ambiguous).flatten(1)[:, None, None]
    column = _of_residues(tables(truth.aatype.device).ambiguous_swap[truth.aatype], truth)
    there = _distances(truth.atoms.positions, truth)
    here = _distances(predicted, truth)

    def misfit(atoms: NamedAtoms, distances: Tensor) -> Tensor:
        deviation = ((here - distances).abs() * anchors).sum(-1)
        return (deviation * _of_residues(atoms.atom_mask & ambiguous, truth)).sum(-1)

    other = _reordered(there, column - _FIRST)
    return misfit(truth.atoms, there), misfit(truth.alternative, other)


def _distances(
    positions: Float[Tensor, "b n 14 3"], truth: GroundTruth
) -> Float[Tensor, "b r q p"]:
    """From atoms that can be ambiguous, in `truth.ambiguous` residues, to all of their chains."""
    rows = _of_residues(positions, truth)
    distances = pairwise_distances(rows.flatten(1, 2), positions.flatten(1, 2))
    return distances.unflatten(1, rows.shape[1:3])


def _reordered(
    distances: Float[Tensor, "b r q p"], column: Int[Tensor, "b r q"]
) -> Float[Tensor, "b r q p"]:
    chain, residue = (torch.arange(n, device=column.device) for n in column.shape[:2])
    return distances[chain[:, None, None], residue[:, None], column]


def _of_residues(atoms: Tensor, truth: GroundTruth) -> Tensor:
    """The columns of atom14 that can be ambiguous, in the residues `truth.ambiguous`."""
    chain = torch.arange(len(atoms), device=atoms.device)[:, None]
    return atoms[chain, truth.ambiguous, _FIRST:_END]


def _choose(swap: Bool[Tensor, "b n"], yes: NamedAtoms, no: NamedAtoms) -> NamedAtoms:
    def where(one: Tensor, other: Tensor) -> Tensor:
        return torch.where(swap.view(*swap.shape, *(1,) * (one.ndim - 2)), one, other)

    frames = yes.group_frames, no.group_frames
    return NamedAtoms(
        positions=where(yes.positions, no.positions),
        atom_mask=where(yes.atom_mask, no.atom_mask),
        group_frames=Rigid(
            where(*(f.rotation for f in frames)), where(*(f.translation for f in frames))
        ),
        group_mask=where(yes.group_mask, no.group_mask),
    )
