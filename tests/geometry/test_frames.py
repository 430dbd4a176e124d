import pytest
import torch
from torch import Tensor
from torch.nn import functional

from esmfold_peft.geometry.frames import (
    atom14_from_frames,
    backbone_frames,
    frames_from_torsions,
    rigid_group_frames,
)
from esmfold_peft.geometry.rigid import Rigid, rotation_from_quaternion
from esmfold_peft.geometry.torsions import torsion_angles
from esmfold_peft.protein.residues import AATYPE, ATOM14, ATOM14_MASK, CHI_ATOMS, RESIDUES_X
from esmfold_peft.protein.rigid_groups import BACKBONE, CHI1, GROUPS, PSI

EVERY_TYPE = torch.arange(21)[None]
EVERY_ATOM = torch.tensor(ATOM14_MASK)[None]


@pytest.fixture
def ideal() -> tuple[Rigid, Tensor, Rigid, Tensor]:
    """One residue of each type at random: backbone, torsions, the frames and atoms they give."""
    torch.manual_seed(0)
    backbone = Rigid(rotation_from_quaternion(torch.randn(1, 21, 4)), 20 * torch.randn(1, 21, 3))
    torsions = functional.normalize(torch.randn(1, 21, 7, 2), dim=-1)
    frames = frames_from_torsions(backbone, torsions, EVERY_TYPE)
    return backbone, torsions, frames, atom14_from_frames(frames, EVERY_TYPE)


def test_backbone_frame_of_a_hand_made_residue():
    positions = torch.zeros(1, 1, 14, 3)
    positions[0, 0, 0] = torch.tensor([2.5, 4.3, 3.0])  # N
    positions[0, 0, 1] = torch.tensor([3.0, 3.0, 3.0])  # CA
    positions[0, 0, 2] = torch.tensor([4.5, 3.0, 3.0])  # C
    mask = torch.zeros(1, 1, 14, dtype=torch.bool)
    mask[..., :3] = True
    frames, present = backbone_frames(positions, mask)
    assert present.item()
    torch.testing.assert_close(frames.rotation[0, 0], torch.eye(3))
    torch.testing.assert_close(frames.translation[0, 0], torch.tensor([3.0, 3.0, 3.0]))


@pytest.mark.parametrize("absent", [0, 1, 2])
def test_backbone_frame_needs_n_ca_and_c(ubiquitin, absent):
    mask = ubiquitin.atom_mask.clone()
    mask[0, 5, absent] = False
    frames, present = backbone_frames(ubiquitin.positions, mask)
    assert present.sum() == mask.shape[1] - 1
    assert not present[0, 5]
    assert torch.equal(frames.rotation[0, 5], torch.eye(3))
    assert torch.equal(frames.translation[0, 5], torch.zeros(3))


def test_frames_of_atoms_are_those_that_placed_the_atoms(ideal):
    _, _, frames, positions = ideal
    measured, mask = rigid_group_frames(EVERY_TYPE, positions, EVERY_ATOM)
    torch.testing.assert_close(measured.rotation[mask], frames.rotation[mask], atol=2e-5, rtol=0)
    torch.testing.assert_close(
        measured.translation[mask], frames.translation[mask], atol=2e-5, rtol=0
    )


def test_backbone_group_is_the_backbone_frame(ubiquitin):
    backbone, _ = backbone_frames(ubiquitin.positions, ubiquitin.atom_mask)
    groups, _ = rigid_group_frames(*ubiquitin.atoms)
    assert torch.equal(groups.rotation[:, :, BACKBONE], backbone.rotation)
    assert torch.equal(groups.translation[:, :, BACKBONE], backbone.translation)


def test_groups_are_backbone_psi_and_one_for_each_chi(ideal):
    _, mask = rigid_group_frames(EVERY_TYPE, ideal[3], EVERY_ATOM)
    for aatype, letter in enumerate(RESIDUES_X):
        expected = {BACKBONE, PSI} | {CHI1 + chi for chi in range(len(CHI_ATOMS[letter]))}
        assert set(mask[0, aatype].nonzero().flatten().tolist()) == expected, letter


def test_a_missing_atom_masks_its_groups_only(ubiquitin):
    lysine = (ubiquitin.aatype[0] == AATYPE["K"]).nonzero()[0].item()
    mask = ubiquitin.atom_mask.clone()
    mask[0, lysine, ATOM14["K"].index("CD")] = False
    _, before = rigid_group_frames(*ubiquitin.atoms)
    frames, after = rigid_group_frames(ubiquitin.aatype, ubiquitin.positions, mask)
    assert (before & ~after).nonzero().tolist() == [[0, lysine, CHI1 + i] for i in (1, 2, 3)]
    assert torch.equal(frames.rotation[0, lysine, CHI1 + 1], torch.eye(3))


@pytest.mark.parametrize(
    ("letter", "torsion", "moved"),
    [
        ("K", 0, ""),  # ω and φ turn atoms of other residues
        ("K", 1, ""),
        ("K", 2, "O"),
        ("K", 3, "CG CD CE NZ"),
        ("K", 5, "CE NZ"),
        ("R", 6, "CZ NH1 NH2"),
        ("I", 3, "CG1 CG2 CD1"),
        ("T", 3, "OG1 CG2"),
        ("W", 4, "CD1 CD2 NE1 CE2 CE3 CZ2 CZ3 CH2"),
        ("M", 5, "CE"),
        ("A", 3, ""),
        ("X", 2, "O"),
    ],
)
def test_a_torsion_moves_the_atoms_beyond_it(letter, torsion, moved):
    aatype = torch.tensor([[AATYPE[letter]]])
    start = torch.tensor([0.0, 1.0]).expand(1, 1, 7, 2)
    turned = start.clone()
    turned[0, 0, torsion] = functional.normalize(torch.tensor([1.0, 1.0]), dim=0)
    before, after = (
        atom14_from_frames(frames_from_torsions(Rigid.identity(1, 1), t, aatype), aatype)[0, 0]
        for t in (start, turned)
    )
    distance = (before - after).norm(dim=-1)
    names = [name for name, d in zip(ATOM14[letter], distance, strict=False) if d > 0.01]
    assert names == moved.split()
    assert distance.max() < 3.5 * 2**0.5  # nothing flies off: the widest arm is that of Trp


def test_unknown_residue_is_built_as_alanine(motion):
    torsions = functional.normalize(torch.randn(1, 1, 7, 2), dim=-1)
    backbone = Rigid(motion.rotation[None, None], motion.translation[None, None])
    built = [
        atom14_from_frames(frames_from_torsions(backbone, torsions, aatype), aatype)
        for aatype in (torch.tensor([[AATYPE["X"]]]), torch.tensor([[AATYPE["A"]]]))
    ]
    assert torch.equal(*built)
    assert built[0][0, 0, :5].norm(dim=-1).min() > 0
    assert torch.equal(built[0][0, 0, 5:], torch.zeros(9, 3))


def test_ideal_bond_lengths(ideal):
    positions = ideal[3][0]
    bonds = {
        ("A", "N", "CA"): 1.46,
        ("A", "CA", "C"): 1.53,
        ("L", "C", "O"): 1.23,
        ("K", "CE", "NZ"): 1.49,
        ("M", "SD", "CE"): 1.81,
        ("C", "CB", "SG"): 1.81,
        ("R", "CZ", "NH2"): 1.33,
        ("Y", "CZ", "OH"): 1.38,
    }
    for (letter, first, second), length in bonds.items():
        atoms = ATOM14[letter]
        a, b = (positions[AATYPE[letter], atoms.index(name)] for name in (first, second))
        assert abs((a - b).norm().item() - length) < 0.015, (letter, first, second)


def test_moving_the_backbone_moves_every_atom_with_it(ideal, motion):
    backbone, torsions, _, positions = ideal
    moved = frames_from_torsions(motion.compose(backbone), torsions, EVERY_TYPE)
    expected = torch.where(EVERY_ATOM[..., None], motion.apply(positions), 0.0)
    torch.testing.assert_close(
        atom14_from_frames(moved, EVERY_TYPE), expected, atol=5e-5, rtol=1e-5
    )


def test_real_chains_are_rebuilt_from_backbone_and_torsions(chain):
    """Ideal bond lengths and angles cost under 0.1 Å in the median, N, CA and C almost nothing."""
    torsions, _ = torsion_angles(*chain.atoms, chain.residue_index)
    backbone, present = backbone_frames(chain.positions, chain.atom_mask)
    rebuilt = atom14_from_frames(
        frames_from_torsions(backbone, torsions, chain.aatype), chain.aatype
    )
    error = (rebuilt - chain.positions).norm(dim=-1)
    known = chain.atom_mask & present.unsqueeze(-1)
    assert error[known].median() < 0.1
    assert error[known].mean() < 0.3
    assert error[known].quantile(0.95) < 0.8
    assert error[:, :, :3][known[:, :, :3]].median() < 0.03


def test_autocast_changes_nothing(ubiquitin):
    def rebuild() -> tuple[Tensor, ...]:
        torsions, _ = torsion_angles(*ubiquitin.atoms, ubiquitin.residue_index)
        backbone, _ = backbone_frames(ubiquitin.positions, ubiquitin.atom_mask)
        groups, _ = rigid_group_frames(*ubiquitin.atoms)
        frames = frames_from_torsions(backbone, torsions, ubiquitin.aatype)
        return torsions, groups.rotation, atom14_from_frames(frames, ubiquitin.aatype)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = rebuild()
    for tensor, expected in zip(under_autocast, rebuild(), strict=True):
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, expected)


@pytest.mark.parametrize("present", [False, True], ids=["absent", "all at the origin"])
def test_gradients_are_finite_where_coordinates_are_zero(present):
    positions = torch.zeros(1, 21, 14, 3, requires_grad=True)
    mask = EVERY_ATOM & present
    torsions, _ = torsion_angles(EVERY_TYPE, positions, mask, EVERY_TYPE)
    groups, _ = rigid_group_frames(EVERY_TYPE, positions, mask)
    backbone, _ = backbone_frames(positions, mask)
    frames = frames_from_torsions(backbone, torsions, EVERY_TYPE)
    total = atom14_from_frames(frames, EVERY_TYPE).sum() + groups.rotation.sum()
    (gradient,) = torch.autograd.grad(total + groups.translation.sum(), positions)
    assert torch.isfinite(total)
    assert torch.isfinite(gradient).all()
    if not present:
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_torsion_gradient_is_that_of_finite_differences(ideal):
    backbone, torsions, _, _ = ideal
    weights = torch.randn(1, 21, 14, 3)

    def weighted(t: Tensor) -> Tensor:
        frames = frames_from_torsions(backbone, t, EVERY_TYPE)
        return (weights * (atom14_from_frames(frames, EVERY_TYPE))).sum()

    torsions = torsions.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(weighted(torsions), torsions)
    step = torch.randn_like(torsions)
    slope = (weighted(torsions + 1e-2 * step) - weighted(torsions - 1e-2 * step)) / 2e-2
    torch.testing.assert_close((gradient * step).sum(), slope, rtol=1e-3, atol=1e-2)


def test_there_are_eight_groups(ideal):
    assert ideal[2].shape == (1, 21, GROUPS)
