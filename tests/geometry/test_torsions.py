import biotite.structure as struc
import biotite.structure.io.pdbx as pdbx
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from esmfold_peft.geometry.atoms import swap_ambiguous_atoms
from esmfold_peft.geometry.frames import atom14_from_frames, frames_from_torsions
from esmfold_peft.geometry.rigid import Rigid
from esmfold_peft.geometry.torsions import alternative_torsions, torsion_angles
from esmfold_peft.protein.residues import AATYPE, ATOM14, ATOM14_MASK, CHI_ATOMS, RESIDUES_X

OMEGA, PHI, PSI, CHI1 = range(4)


def degrees(torsions: Tensor) -> Tensor:
    return torch.rad2deg(torch.atan2(torsions[..., 0], torsions[..., 1]))


def difference(first: Tensor, second: Tensor) -> Tensor:
    return ((first - second + 180) % 360 - 180).abs()


def measure(chain) -> tuple[Tensor, Tensor]:
    torsions, mask = torsion_angles(*chain.atoms, chain.residue_index)
    return degrees(torsions)[0], mask[0]


def test_alpha_helix_and_beta_strand_of_ubiquitin(ubiquitin):
    angles, _ = measure(ubiquitin)
    helix = angles[23:33]  # the α-helix is residues 23 to 34
    assert abs(helix[:, PHI].median() + 62) < 6
    assert abs(helix[:, PSI].median() + 42) < 6
    strand = angles[11:16]  # the second strand is residues 10 to 17
    assert abs(strand[:, PHI].median() + 115) < 25
    assert abs(strand[:, PSI].median() - 135) < 25
    assert angles[1:, OMEGA].abs().min() > 160  # all peptide bonds are trans


def test_backbone_torsions_are_those_of_biotite(ubiquitin):
    atoms = pdbx.get_structure(pdbx.CIFFile.read(ubiquitin.path), model=1)
    phi, psi, omega = struc.dihedral_backbone(atoms[struc.filter_amino_acids(atoms)])
    angles, mask = measure(ubiquitin)
    assert mask[1:, :3].all()
    assert not mask[0, :2].any()
    reference = {
        name: torch.tensor(np.rad2deg(a)) for name, a in (("φ", phi), ("ψ", psi), ("ω", omega))
    }
    assert difference(angles[1:, PHI], reference["φ"][1:]).max() < 0.01
    # biotite's ω is that of the bond after the residue
    assert difference(angles[1:, OMEGA], reference["ω"][:-1]).max() < 0.01
    # ψ is measured from O, which lies opposite the next N but not exactly in its plane
    psi_difference = difference(angles[:-1, PSI], reference["ψ"][:-1])
    assert psi_difference.median() < 3
    assert psi_difference.max() < 15


def test_chi_torsions_are_those_of_biotite(chain):
    angles, mask = measure(chain)
    positions = chain.positions[0].numpy()
    checked = 0
    for i, aatype in enumerate(chain.aatype[0].tolist()):
        letter = RESIDUES_X[aatype]
        for chi, names in enumerate(CHI_ATOMS[letter]):
            if mask[i, CHI1 + chi]:
                points = [positions[i, ATOM14[letter].index(name)] for name in names]
                expected = torch.tensor(np.rad2deg(struc.dihedral(*points)))
                assert difference(angles[i, CHI1 + chi], expected) < 0.01
                checked += 1
    assert checked == mask[:, CHI1:].sum() > 40


def test_rigid_motion_changes_no_torsion(ubiquitin, motion):
    moved = torsion_angles(
        ubiquitin.aatype,
        motion.apply(ubiquitin.positions),
        ubiquitin.atom_mask,
        ubiquitin.residue_index,
    )
    still = torsion_angles(*ubiquitin.atoms, ubiquitin.residue_index)
    torch.testing.assert_close(moved[0], still[0], atol=1e-4, rtol=0)
    assert torch.equal(moved[1], still[1])


def test_a_mirror_image_turns_every_sign(ubiquitin):
    mirror = ubiquitin.positions * torch.tensor([1.0, 1.0, -1.0])
    mirrored, mask = torsion_angles(
        ubiquitin.aatype, mirror, ubiquitin.atom_mask, ubiquitin.residue_index
    )
    torsions, _ = torsion_angles(*ubiquitin.atoms, ubiquitin.residue_index)
    expected = torsions * torch.tensor([-1.0, 1.0])
    torch.testing.assert_close(mirrored[mask], expected[mask], atol=1e-4, rtol=0)


def test_a_gap_in_the_numbering_hides_omega_and_phi_of_the_residue_after_it(ubiquitin):
    index = ubiquitin.residue_index.clone()
    index[:, 10:] += 1
    _, whole = torsion_angles(*ubiquitin.atoms, ubiquitin.residue_index)
    torsions, broken = torsion_angles(*ubiquitin.atoms, index)
    assert (whole & ~broken).nonzero().tolist() == [[0, 10, OMEGA], [0, 10, PHI]]
    assert torch.equal(torsions[0, 10, :2], torch.tensor([[0.0, 1.0]]).expand(2, 2))


@pytest.mark.parametrize(
    ("atom", "hidden"),
    [
        ("CA", [(19, OMEGA), (19, PHI), (19, PSI), (19, CHI1), (20, OMEGA)]),
        ("C", [(19, PHI), (19, PSI), (20, OMEGA), (20, PHI)]),
        ("O", [(19, PSI)]),
    ],
)
def test_an_absent_atom_hides_the_torsions_that_need_it(ubiquitin, atom, hidden):
    assert RESIDUES_X[ubiquitin.aatype[0, 19]] == "S"
    mask = ubiquitin.atom_mask.clone()
    mask[0, 19, ATOM14["S"].index(atom)] = False
    _, whole = torsion_angles(*ubiquitin.atoms, ubiquitin.residue_index)
    _, part = torsion_angles(ubiquitin.aatype, ubiquitin.positions, mask, ubiquitin.residue_index)
    assert [(i, t) for _, i, t in (whole & ~part).nonzero().tolist()] == hidden


def test_padding_does_not_borrow_the_last_residue(ubiquitin):
    """Padding has index 0 and no atoms."""
    _, mask = torsion_angles(*ubiquitin.atoms, ubiquitin.residue_index)
    padded = [functional.pad(t, (0, 3)) for t in (ubiquitin.aatype, ubiquitin.residue_index)]
    positions = functional.pad(ubiquitin.positions, (0, 0, 0, 0, 0, 3))
    atom_mask = functional.pad(ubiquitin.atom_mask, (0, 0, 0, 3))
    torsions, padded_mask = torsion_angles(padded[0], positions, atom_mask, padded[1])
    assert torch.equal(padded_mask[:, :-3], mask)
    assert not padded_mask[:, -3:].any()
    assert torch.equal(torsions[:, -3:], torch.tensor([0.0, 1.0]).expand(1, 3, 7, 2))


def test_measured_torsions_are_those_that_built_the_residues():
    torch.manual_seed(0)
    aatype = torch.arange(21)[None]
    torsions = functional.normalize(torch.randn(1, 21, 7, 2), dim=-1)
    frames = frames_from_torsions(Rigid.identity(1, 21), torsions, aatype)
    measured, mask = torsion_angles(
        aatype, atom14_from_frames(frames, aatype), torch.tensor(ATOM14_MASK)[None], aatype
    )
    own = mask.clone()
    own[:, :, :PSI] = False  # ω and φ are not built here
    assert own.sum() == 21 + 18 + 14 + 5 + 2  # ψ and χ1 to χ4
    torch.testing.assert_close(measured[own], torsions[own], atol=2e-5, rtol=0)


def test_alternative_torsions_are_those_of_the_swapped_atoms():
    torch.manual_seed(0)
    aatype = torch.tensor([[AATYPE[letter] for letter in RESIDUES_X]])
    torsions = functional.normalize(torch.randn(1, 21, 7, 2), dim=-1)
    frames = frames_from_torsions(Rigid.identity(1, 21), torsions, aatype)
    atoms = atom14_from_frames(frames, aatype), torch.tensor(ATOM14_MASK)[None]
    measured, mask = torsion_angles(aatype, *atoms, aatype)
    swapped, _ = torsion_angles(aatype, *swap_ambiguous_atoms(aatype, *atoms), aatype)
    alternative = alternative_torsions(aatype, measured)
    # the two ends of ideal Asp, Glu, Phe and Tyr are symmetric to a degree
    assert difference(degrees(alternative), degrees(swapped))[mask].max() < 1
    changed = (alternative != measured).all(-1).nonzero().tolist()
    expected = [(AATYPE["D"], 4), (AATYPE["E"], 5), (AATYPE["F"], 4), (AATYPE["Y"], 4)]
    assert sorted((i, torsion) for _, i, torsion in changed) == sorted(expected)
