"""The residue tables against those of transformers' port of OpenFold."""

import numpy as np
import pytest
from transformers.models.esm.openfold_utils import residue_constants as reference

from esmfold_peft.protein import residues


def test_orders_of_residues_and_atoms() -> None:
    assert list(residues.RESIDUES) == reference.restypes
    assert list(residues.ATOM37) == reference.atom_types
    assert reference.atom_order == residues.ATOM37_INDEX
    assert {letter: residues.AATYPE[letter] for letter in "ARNDCQEGHILKMFPSTWYVX"} == (
        reference.restype_order_with_x
    )
    for letter, three in reference.restype_1to3.items():
        assert residues.ONE_TO_THREE[letter] == three
        assert residues.THREE_TO_ONE[three] == letter


@pytest.mark.parametrize("letter", residues.RESIDUES)
def test_atoms_of_each_residue(letter: str) -> None:
    three = reference.restype_1to3[letter]
    names = [name for name in reference.restype_name_to_atom14_names[three] if name]
    assert list(residues.ATOM14[letter]) == names
    aatype = residues.AATYPE[letter]
    columns = residues.ATOM14_TO_ATOM37[aatype][residues.ATOM14_MASK[aatype]]
    assert columns.tolist() == [reference.atom_order[name] for name in names]
    assert residues.ATOM14_MASK[aatype].sum() == len(names)
    assert set(names) == set(reference.residue_atoms[three])


@pytest.mark.parametrize("letter", residues.RESIDUES)
def test_side_chain_torsions(letter: str) -> None:
    expected = reference.chi_angles_atoms[reference.restype_1to3[letter]]
    assert [list(chi) for chi in residues.CHI_ATOMS[letter]] == expected
    periodic = reference.chi_pi_periodic[residues.AATYPE[letter]]
    turned = tuple(np.flatnonzero(periodic).tolist())
    assert residues.CHI_PI_PERIODIC.get(letter, ()) == turned


def test_ambiguous_atoms() -> None:
    for letter in residues.RESIDUES:
        pairs = reference.residue_atom_renaming_swaps.get(reference.restype_1to3[letter], {})
        assert dict(residues.AMBIGUOUS_ATOMS.get(letter, ())) == pairs


def test_x_is_built_as_alanine() -> None:
    # DISCREPANCY: the reference gives X no atoms.
    assert residues.ATOM14["X"] == residues.ATOM14["A"]
    assert residues.CHI_ATOMS["X"] == ()
    assert residues.ATOM14_MASK[residues.UNKNOWN].sum() == 5


def test_encode_sends_every_other_letter_to_x() -> None:
    assert residues.encode("ARNDCQEGHILKMFPSTWYV").tolist() == list(range(20))
    assert residues.encode("XBZUOJ").tolist() == [20] * 6
