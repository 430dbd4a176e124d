import torch

from esmfold_peft.geometry.atoms import (
    atom14_to_atom37,
    atom14_to_atom37_mask,
    is_ambiguous,
    swap_ambiguous_atoms,
    virtual_cb,
)
from esmfold_peft.protein.residues import AATYPE, ATOM14, ATOM14_MASK, ATOM37, RESIDUES_X


def test_virtual_cb_lies_at_the_real_one(chain):
    known = chain.atom_mask[0, :, :5].all(-1) & (chain.aatype[0] != AATYPE["G"])
    error = (virtual_cb(chain.positions)[0] - chain.positions[0, :, 4]).norm(dim=-1)[known]
    assert error.median() < 0.15
    assert error.max() < 0.5


def test_glycine_has_a_virtual_cb_on_the_side_of_l_amino_acids(ubiquitin):
    glycine = ubiquitin.aatype[0] == AATYPE["G"]
    n, ca, c = ubiquitin.positions[0, glycine, :3].unbind(-2)
    bond = virtual_cb(ubiquitin.positions)[0, glycine] - ca
    assert glycine.sum() == 6
    assert ((bond.norm(dim=-1) - 1.5).abs() < 0.2).all()
    handedness = (torch.linalg.cross(n - ca, c - ca) * bond).sum(-1)
    alanine = ubiquitin.aatype[0] == AATYPE["A"]
    n, ca, c, _, cb = ubiquitin.positions[0, alanine, :5].unbind(-2)
    reference = (torch.linalg.cross(n - ca, c - ca) * (cb - ca)).sum(-1)
    assert (handedness.sign() == reference[0].sign()).all()


def test_virtual_cb_moves_with_the_backbone(ubiquitin, motion):
    moved = virtual_cb(motion.apply(ubiquitin.positions))
    expected = motion.apply(virtual_cb(ubiquitin.positions))
    torch.testing.assert_close(moved, expected, atol=1e-4, rtol=0)


def test_every_atom_reaches_the_column_of_its_name():
    aatype = torch.arange(21)[None]
    positions = torch.randn(1, 21, 14, 3)
    wide = atom14_to_atom37(aatype, positions)[0]
    mask = atom14_to_atom37_mask(aatype, torch.ones(1, 21, 14, dtype=torch.bool))[0]
    for i, letter in enumerate(RESIDUES_X):
        for column, name in enumerate(ATOM37):
            assert mask[i, column] == (name in ATOM14[letter]), (letter, name)
            if name in ATOM14[letter]:
                expected = positions[0, i, ATOM14[letter].index(name)]
                assert torch.equal(wide[i, column], expected), (letter, name)
            else:
                assert torch.equal(wide[i, column], torch.zeros(3)), (letter, name)


def test_an_absent_atom_is_absent_in_both_layouts(ubiquitin):
    mask = ubiquitin.atom_mask.clone()
    mask[0, 0, ATOM14["M"].index("SD")] = False
    wide = atom14_to_atom37_mask(ubiquitin.aatype, mask)
    assert wide.sum() == mask.sum()
    assert not wide[0, 0, ATOM37.index("SD")]
    assert wide[0, 0, ATOM37.index("CE")]


def test_ambiguous_atoms_are_those_of_asp_glu_phe_and_tyr():
    ambiguous = is_ambiguous(torch.arange(21)[None])[0]
    names = {
        (RESIDUES_X[i], ATOM14[RESIDUES_X[i]][column]) for i, column in ambiguous.nonzero().tolist()
    }
    rings = {(letter, name) for letter in "FY" for name in ("CD1", "CD2", "CE1", "CE2")}
    assert names == rings | {("D", "OD1"), ("D", "OD2"), ("E", "OE1"), ("E", "OE2")}


def test_swapping_exchanges_the_ambiguous_pairs_and_their_masks():
    aatype = torch.arange(21)[None]
    positions = torch.randn(1, 21, 14, 3)
    mask = torch.tensor(ATOM14_MASK)[None].clone()
    tyrosine = AATYPE["Y"]
    cd1, cd2, ce1, ce2, cz = (
        ATOM14["Y"].index(name) for name in ("CD1", "CD2", "CE1", "CE2", "CZ")
    )
    mask[0, tyrosine, cd2] = False
    swapped, swapped_mask = swap_ambiguous_atoms(aatype, positions, mask)
    for here, there in ((cd1, cd2), (cd2, cd1), (ce1, ce2), (ce2, ce1), (cz, cz)):
        assert torch.equal(swapped[0, tyrosine, here], positions[0, tyrosine, there])
    assert not swapped_mask[0, tyrosine, cd1]
    assert swapped_mask[0, tyrosine, cd2]
    fixed = ~is_ambiguous(aatype)
    assert torch.equal(swapped[fixed], positions[fixed])
    twice, mask_twice = swap_ambiguous_atoms(aatype, swapped, swapped_mask)
    assert torch.equal(twice, positions)
    assert torch.equal(mask_twice, mask)
