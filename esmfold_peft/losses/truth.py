"""What the losses need to know of the true structure, computed once per step."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from esmfold_peft.datasets.batch import Batch
from esmfold_peft.geometry.ambiguity import is_ambiguous, swap_ambiguous_atoms
from esmfold_peft.geometry.atoms import virtual_cb
from esmfold_peft.geometry.distances import pairwise_distances
from esmfold_peft.geometry.frames import backbone_frames, rigid_group_frames
from esmfold_peft.geometry.rigid import Rigid
from esmfold_peft.geometry.torsions import alternative_torsions, torsion_angles
from esmfold_peft.protein.residues import AMBIGUOUS_ATOMS, ATOM14

_CA = 1

_AMBIGUOUS = {
    ATOM14[letter].index(name)
    for letter, pairs in AMBIGUOUS_ATOMS.items()
    for pair in pairs
    for name in pair
}
_AMBIGUOUS_COLUMNS = slice(min(_AMBIGUOUS), max(_AMBIGUOUS) + 1)
"""Columns of atom14 that hold an ambiguous atom in some residue: 6 to 9."""


@dataclass(frozen=True, eq=False)
class NamedAtoms:
    """Atoms, and frames of the rigid groups, under one of the two namings of ambiguous atoms.

    Attributes:
        positions: atom14 coordinates in Å, 0 where absent.
        atom_mask: which atoms are known.
        group_frames: the eight rigid groups of each residue, of shape (b, n, 8).
        group_mask: which of them are known.
    """

    positions: Float[Tensor, "b n 14 3"]
    atom_mask: Bool[Tensor, "b n 14"]
    group_frames: Rigid
    group_mask: Bool[Tensor, "b n 8"]


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """The true structures of a batch.

    Attributes:
        aatype: 0 to 20.
        backbone_frames: of shape (b, n).
        backbone_mask: residues with N, CA and C.
        torsions: (sin, cos) of ω, φ, ψ, χ1 to χ4.
        alternative_torsions: the same with χ of symmetric ends turned by π.
        torsion_mask: known torsions.
        ca: Cα in Å, 0 where absent.
        ca_mask: residues with Cα.
        cb: virtual Cβ in Å, meaningless where masked.
        cb_mask: residues with N, CA and C.
        atoms: atoms as they are named.
        alternative: atoms with the ambiguous names exchanged.
    """

    aatype: Int[Tensor, "b n"]
    backbone_frames: Rigid
    backbone_mask: Bool[Tensor, "b n"]
    torsions: Float[Tensor, "b n 7 2"]
    alternative_torsions: Float[Tensor, "b n 7 2"]
    torsion_mask: Bool[Tensor, "b n 7"]
    ca: Float[Tensor, "b n 3"]
    ca_mask: Bool[Tensor, "b n"]
    cb: Float[Tensor, "b n 3"]
    cb_mask: Bool[Tensor, "b n"]
    atoms: NamedAtoms
    alternative: NamedAtoms


@torch.no_grad()
def ground_truth(batch: Batch) -> GroundTruth:
    """Derives frames, torsions and the alternative naming from the atoms of a batch."""
    aatype, positions, atom_mask = batch.aatype, batch.positions, batch.atom_mask
    frames, backbone_mask = backbone_frames(positions, atom_mask)
    torsions, torsion_mask = torsion_angles(aatype, positions, atom_mask, batch.residue_index)
    return GroundTruth(
        aatype=aatype,
        backbone_frames=frames,
        backbone_mask=backbone_mask,
        torsions=torsions,
        alternative_torsions=alternative_torsions(aatype, torsions),
        torsion_mask=torsion_mask,
        ca=positions[:, :, _CA],
        ca_mask=atom_mask[:, :, _CA],
        cb=virtual_cb(positions),
        cb_mask=backbone_mask,
        atoms=_named(aatype, positions, atom_mask),
        alternative=_named(aatype, *swap_ambiguous_atoms(aatype, positions, atom_mask)),
    )


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
    ambiguous = is_ambiguous(truth.aatype)
    chain, place = ambiguous.any(-1).nonzero().unbind(-1)
    residues = chain, place
    predicted = _distances(predicted_positions, residues)
    given, other = (
        _misfit(atoms, predicted, ambiguous, residues) for atoms in (truth.atoms, truth.alternative)
    )
    swap = torch.zeros_like(truth.ca_mask).index_put(residues, other < given)
    return replace(
        truth,
        atoms=_choose(swap, truth.alternative, truth.atoms),
        alternative=_choose(swap, truth.atoms, truth.alternative),
    )


def _named(
    aatype: Int[Tensor, "b n"],
    positions: Float[Tensor, "b n 14 3"],
    atom_mask: Bool[Tensor, "b n 14"],
) -> NamedAtoms:
    # DISCREPANCY: AF2 turns the frame of an alternative χ by exactly π; here it is built from the
    # exchanged atoms, which also says rightly whether it is known when only one of the two atoms
    # is.
    return NamedAtoms(positions, atom_mask, *rigid_group_frames(aatype, positions, atom_mask))


def _misfit(
    atoms: NamedAtoms,
    predicted: Float[Tensor, "r q p"],
    ambiguous: Bool[Tensor, "b n 14"],
    residues: tuple[Int[Tensor, "r"], Int[Tensor, "r"]],
) -> Float[Tensor, "r"]:
    """Deviation of distances from ambiguous to all unambiguous atoms, summed by residue."""
    rows = (atoms.atom_mask & ambiguous)[residues][:, _AMBIGUOUS_COLUMNS]
    anchors = (atoms.atom_mask & ~ambiguous).flatten(1)[residues[0]]
    difference = predicted - _distances(atoms.positions, residues)
    return (difference.abs() * (rows[:, :, None] & anchors[:, None])).sum((1, 2))


def _distances(
    positions: Float[Tensor, "b n 14 3"], residues: tuple[Int[Tensor, "r"], Int[Tensor, "r"]]
) -> Float[Tensor, "r q p"]:
    """From those atoms of some residues that can be ambiguous to all atoms of their chains."""
    rows = positions[residues][:, _AMBIGUOUS_COLUMNS]
    return pairwise_distances(rows, positions.flatten(1, 2)[residues[0]])


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
