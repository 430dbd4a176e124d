"""Tables and frames against transformers' port of OpenFold."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers.models.esm.openfold_utils import feats
from transformers.models.esm.openfold_utils import residue_constants as reference
from transformers.models.esm.openfold_utils.rigid_utils import Rigid as ReferenceRigid
from transformers.models.esm.openfold_utils.rigid_utils import Rotation

from esmfold_peft.geometry.atoms import atom14_to_atom37
from esmfold_peft.geometry.frames import (
    atom14_from_frames,
    backbone_frames,
    frames_from_torsions,
)
from esmfold_peft.geometry.rigid import Rigid, rotation_from_quaternion
from esmfold_peft.protein import residues, rigid_groups

STANDARD = 20
"""transformers' row of X is empty; ours is that of alanine."""


def test_orders_of_residues_and_atoms():
    assert "".join(reference.restypes_with_x) == residues.RESIDUES_X
    assert tuple(reference.atom_types) == residues.ATOM37
    for letter in residues.RESIDUES:
        names = reference.restype_name_to_atom14_names[residues.ONE_TO_THREE[letter]]
        assert tuple(name for name in names if name) == residues.ATOM14[letter]


def test_literature_positions_and_groups():
    groups, positions = rigid_groups.ATOM14_GROUP, rigid_groups.ATOM14_LITERATURE_POSITIONS
    np.testing.assert_array_equal(
        groups[:STANDARD], reference.restype_atom14_to_rigid_group[:STANDARD]
    )
    np.testing.assert_array_equal(
        positions[:STANDARD], reference.restype_atom14_rigid_group_positions[:STANDARD]
    )
    np.testing.assert_array_equal(groups[residues.UNKNOWN], groups[residues.AATYPE["A"]])


def test_default_frames():
    theirs = reference.restype_rigid_group_default_frame[:STANDARD]
    exists = np.linalg.det(theirs[..., :3, :3]) > 0.5  # zeros where there is no such χ
    assert exists.sum() == STANDARD * 4 + 18 + 14 + 5 + 2  # the χ1 to χ4 of all residues
    rotation = rigid_groups.DEFAULT_ROTATION[:STANDARD]
    translation = rigid_groups.DEFAULT_TRANSLATION[:STANDARD]
    np.testing.assert_allclose(rotation[exists], theirs[exists][:, :3, :3], atol=1e-7)
    np.testing.assert_allclose(translation[exists], theirs[exists][:, :3, 3], atol=1e-7)
    identity = np.broadcast_to(np.eye(3), rotation[~exists].shape)
    np.testing.assert_array_equal(rotation[~exists], identity)


def test_ambiguous_atoms_and_symmetric_torsions():
    np.testing.assert_array_equal(
        rigid_groups.AMBIGUOUS_SWAP, reference.restype_atom14_ambiguous_atoms_swap_idx
    )
    np.testing.assert_array_equal(
        rigid_groups.CHI_IS_PI_PERIODIC, np.array(reference.chi_pi_periodic, dtype=bool)
    )
    np.testing.assert_array_equal(
        rigid_groups.TORSION_EXISTS[:STANDARD, 3:],
        np.array(reference.chi_angles_mask, dtype=bool)[:STANDARD],
    )


@pytest.fixture
def residues_at_random() -> tuple[Rigid, Tensor, Tensor]:
    torch.manual_seed(0)
    backbone = Rigid(rotation_from_quaternion(torch.randn(2, 40, 4)), 20 * torch.randn(2, 40, 3))
    torsions = functional.normalize(torch.randn(2, 40, 7, 2), dim=-1)
    return backbone, torsions, torch.arange(80).view(2, 40) % STANDARD


def _reference_frames(backbone: Rigid, torsions: Tensor, aatype: Tensor) -> ReferenceRigid:
    frames = ReferenceRigid(Rotation(rot_mats=backbone.rotation), backbone.translation)
    default = torch.tensor(reference.restype_rigid_group_default_frame)
    return feats.torsion_angles_to_frames(frames, torsions, aatype, default)


def test_frames_of_torsions(residues_at_random):
    backbone, torsions, aatype = residues_at_random
    ours = frames_from_torsions(backbone, torsions, aatype)
    theirs = _reference_frames(backbone, torsions, aatype)
    # the first absent χ and those after it are zeros there
    exists = torch.linalg.det(theirs.get_rots().get_rot_mats()) > 0.5
    rotation = theirs.get_rots().get_rot_mats()[exists]
    torch.testing.assert_close(ours.rotation[exists], rotation, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        ours.translation[exists], theirs.get_trans()[exists], atol=1e-5, rtol=0
    )


def test_atoms_of_frames(residues_at_random):
    backbone, torsions, aatype = residues_at_random
    theirs = feats.frames_and_literature_positions_to_atom14_pos(
        _reference_frames(backbone, torsions, aatype),
        aatype,
        torch.tensor(reference.restype_rigid_group_default_frame),
        torch.tensor(reference.restype_atom14_to_rigid_group),
        torch.tensor(reference.restype_atom14_mask),
        torch.tensor(reference.restype_atom14_rigid_group_positions),
    )
    ours = atom14_from_frames(frames_from_torsions(backbone, torsions, aatype), aatype)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_backbone_frames(residues_at_random):
    backbone, torsions, aatype = residues_at_random
    positions = atom14_from_frames(frames_from_torsions(backbone, torsions, aatype), aatype)
    positions = positions + 0.1 * torch.randn_like(positions)
    ours, _ = backbone_frames(positions, torch.ones(2, 40, 14, dtype=torch.bool))
    n, ca, c = positions[:, :, :3].unbind(2)
    theirs = ReferenceRigid.make_transform_from_reference(n, ca, c)
    rotation = theirs.get_rots().get_rot_mats()
    torch.testing.assert_close(ours.rotation, rotation, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.translation, theirs.get_trans(), atol=1e-6, rtol=0)


def test_atom37_layout(residues_at_random):
    _, _, aatype = residues_at_random
    positions = torch.randn(2, 40, 14, 3)
    columns = torch.zeros(21, 37, dtype=torch.long)
    for i, letter in enumerate(residues.RESIDUES):
        for column, name in enumerate(
            reference.restype_name_to_atom14_names[residues.ONE_TO_THREE[letter]]
        ):
            if name:
                columns[i, reference.atom_order[name]] = column
    theirs = feats.atom14_to_atom37(
        positions,
        {
            "residx_atom37_to_atom14": columns[aatype],
            "atom37_atom_exists": torch.tensor(reference.restype_atom37_mask)[aatype],
        },
    )
    assert torch.equal(atom14_to_atom37(aatype, positions), theirs)
