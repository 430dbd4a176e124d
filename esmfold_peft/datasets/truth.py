"""True frames, torsions and names of atoms for the losses; they follow from the batch alone."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils._pytree import register_dataclass

from esmfold_peft.datasets.batch import Batch, Padded
from esmfold_peft.geometry.atoms import is_ambiguous, swap_ambiguous_atoms, virtual_cb
from esmfold_peft.geometry.frames import backbone_frames, rigid_group_frames
from esmfold_peft.geometry.rigid import Rigid
from esmfold_peft.geometry.torsions import alternative_torsions, torsion_angles

_CA = 1


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
class GroundTruth(Padded):
    """The true structures of a batch.

    Attributes:
        aatype: 0 to 20.
        residue_index: positions in the chain.
        mask: which residues exist.
        resolution: Å; NaN if unknown.
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
        ambiguous: places of the residues with ambiguous names, then of others; all distinct.
    """

    aatype: Int[Tensor, "b n"]
    residue_index: Int[Tensor, "b n"]
    mask: Bool[Tensor, "b n"]
    resolution: Float[Tensor, "b"]
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
    ambiguous: Int[Tensor, "b r"]


for _kind in (NamedAtoms, GroundTruth):  # CUDA graphs look for tensors in them
    register_dataclass(_kind)


@torch.no_grad()
def ground_truth(batch: Batch, *, fixed: bool = False) -> GroundTruth:
    """Derives frames, torsions and the alternative naming from the atoms of a batch.

    If `fixed`, all shapes follow from that of the batch, as compiled code needs it. Otherwise
    `ambiguous` is as long as the largest number of ambiguous residues in a chain.
    """
    aatype, positions, atom_mask = batch.aatype, batch.positions, batch.atom_mask
    frames, backbone_mask = backbone_frames(positions, atom_mask)
    torsions, torsion_mask = torsion_angles(aatype, positions, atom_mask, batch.residue_index)
    return GroundTruth(
        aatype=aatype,
        residue_index=batch.residue_index,
        mask=batch.mask,
        resolution=batch.resolution,
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
        ambiguous=_ambiguous_residues(aatype, fixed),
    )


def _named(
    aatype: Int[Tensor, "b n"],
    positions: Float[Tensor, "b n 14 3"],
    atom_mask: Bool[Tensor, "b n 14"],
) -> NamedAtoms:
    # DISCREPANCY: AF2 turns the frame of an alternative χ by exactly π; here it is built from the
    # exchanged atoms, which also masks it correctly when only one of the two atoms is known.
    return NamedAtoms(positions, atom_mask, *rigid_group_frames(aatype, positions, atom_mask))


def _ambiguous_residues(aatype: Int[Tensor, "b n"], fixed: bool) -> Int[Tensor, "b r"]:
    # Other residues, whose renaming changes nothing, follow instead of padding. They are in the
    # order of the chain, so that a batch that is cut to its chains' length still has them.
    ambiguous = is_ambiguous(aatype).any(-1)
    most = aatype.shape[1] if fixed else int(ambiguous.sum(1).amax())
    return ambiguous.int().argsort(dim=1, descending=True, stable=True)[:, :most]
