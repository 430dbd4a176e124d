"""Bond lengths, angles and radii against biotite's chemical components and transformers."""

import numpy as np
import pytest
from biotite.structure import AtomArray, info
from transformers.models.esm.openfold_utils import residue_constants as reference

from esmfold_peft.protein import stereochemistry
from esmfold_peft.protein.residues import AATYPE, ATOM14, ONE_TO_THREE, RESIDUES


def heavy_atoms(letter: str) -> AtomArray:
    """A residue of the Chemical Component Dictionary in its ideal coordinates, within a chain."""
    atoms = info.residue(ONE_TO_THREE[letter])
    return atoms[(atoms.element != "H") & (atoms.atom_name != "OXT")]


def test_constants_are_those_of_the_reference():
    assert reference.van_der_waals_radius == stereochemistry.VAN_DER_WAALS_RADIUS
    lengths = stereochemistry.C_N_LENGTH, stereochemistry.C_N_LENGTH_PROLINE
    means = reference.between_res_bond_length_c_n
    deviations = reference.between_res_bond_length_stddev_c_n
    assert list(lengths) == list(zip(means, deviations, strict=True))
    assert tuple(reference.between_res_cos_angles_ca_c_n) == stereochemistry.COS_CA_C_N
    assert tuple(reference.between_res_cos_angles_c_n_ca) == stereochemistry.COS_C_N_CA


@pytest.mark.parametrize("letter", RESIDUES)
def test_bonds_are_those_of_the_component(letter):
    atoms = heavy_atoms(letter)
    names = atoms.atom_name
    theirs = {frozenset((names[i], names[j])) for i, j, _ in atoms.bonds.as_array()}
    assert {frozenset(pair) for pair in stereochemistry.BOND_LENGTHS[letter]} == theirs


def test_lengths_and_angles_of_the_ideal_components():
    length_errors, angle_errors = [], []
    for letter in RESIDUES:
        atoms = heavy_atoms(letter)
        at = dict(zip(atoms.atom_name, atoms.coord.astype(float), strict=True))
        for (one, two), (mean, std) in stereochemistry.BOND_LENGTHS[letter].items():
            length_errors.append(abs(np.linalg.norm(at[one] - at[two]) - mean) / std)
        for (one, corner, two), (mean, std) in stereochemistry.BOND_ANGLES[letter].items():
            first, second = at[one] - at[corner], at[two] - at[corner]
            cosine = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
            angle_errors.append(abs(np.degrees(np.arccos(cosine)) - mean) / std)
    # The components are not ionised: acids have an OH (8.2 deviations from the mean of a
    # carboxylate) and arginine one double bond. CYS and PRO have the largest angles, 4 and 5.
    assert max(length_errors) < 9
    assert max(angle_errors) < 6
    assert np.median(length_errors) < 1
    assert np.median(angle_errors) < 1


@pytest.mark.parametrize("letter", RESIDUES)
def test_ideal_components_are_within_all_bounds(letter):
    atoms, count = heavy_atoms(letter), len(ATOM14[letter])
    assert sorted(atoms.atom_name) == sorted(ATOM14[letter])
    order = [list(atoms.atom_name).index(name) for name in ATOM14[letter]]
    coord = atoms.coord[order].astype(float)
    distance = np.linalg.norm(coord[:, None] - coord, axis=-1)
    assert (distance >= stereochemistry.DISTANCE_LOWER[AATYPE[letter], :count, :count]).all()
    assert (distance <= stereochemistry.DISTANCE_UPPER[AATYPE[letter], :count, :count]).all()
    # A fifth smaller, no residue would pass.
    assert (0.8 * distance < stereochemistry.DISTANCE_LOWER[AATYPE[letter], :count, :count]).any()
