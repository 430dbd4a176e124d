"""The bounds of distances follow from the tables, by other ways than the module's own."""

import math
from itertools import combinations

import numpy as np
import pytest

from esmfold_peft.protein.residues import AATYPE, ATOM14, RESIDUES, RESIDUES_X, UNKNOWN
from esmfold_peft.protein.stereochemistry import (
    ATOM14_RADIUS,
    BOND_ANGLES,
    BOND_LENGTHS,
    C_N_LENGTH,
    COS_C_N_CA,
    COS_CA_C_N,
    DISTANCE_LOWER,
    DISTANCE_UPPER,
)


def bounds(letter: str, one: str, two: str) -> tuple[float, float]:
    place = AATYPE[letter], ATOM14[letter].index(one), ATOM14[letter].index(two)
    return float(DISTANCE_LOWER[place]), float(DISTANCE_UPPER[place])


def bonds_apart(letter: str) -> np.ndarray:
    """Number of bonds between any two atoms, by powers of the adjacency matrix."""
    names = ATOM14[letter]
    step = np.eye(len(names), dtype=int)
    for one, two in BOND_LENGTHS[letter]:
        step[names.index(one), names.index(two)] = step[names.index(two), names.index(one)] = 1
    apart = np.full(step.shape, len(names))
    for count in reversed(range(len(names))):
        apart[np.linalg.matrix_power(step, count) > 0] = count
    return apart


def test_every_residue_has_the_bonds_of_its_rings() -> None:
    rings = {"P": 1, "H": 1, "F": 1, "Y": 1, "W": 2}
    for letter in RESIDUES_X:
        assert (bonds_apart(letter) < len(ATOM14[letter])).all()  # connected
        assert len(BOND_LENGTHS[letter]) == len(ATOM14[letter]) - 1 + rings.get(letter, 0)


@pytest.mark.parametrize("letter", RESIDUES_X)
def test_there_is_an_angle_for_all_atoms_two_bonds_apart_and_no_others(letter: str) -> None:
    apart, names = bonds_apart(letter), ATOM14[letter]
    ends = {frozenset((first, last)) for first, _, last in BOND_ANGLES[letter]}
    assert len(ends) == len(BOND_ANGLES[letter])
    assert ends == {
        frozenset((names[i], names[j]))
        for i, j in combinations(range(len(names)), 2)
        if apart[i, j] == 2
    }
    finite = np.isfinite(DISTANCE_UPPER[AATYPE[letter], : len(names), : len(names)])
    np.testing.assert_array_equal(finite, (apart == 1) | (apart == 2))


def test_bounds_of_a_bond_are_twelve_deviations_off() -> None:
    assert bounds("A", "CA", "CB") == pytest.approx((1.520 - 0.252, 1.520 + 0.252))
    assert bounds("C", "SG", "CB") == pytest.approx((1.812 - 0.192, 1.812 + 0.192))
    assert bounds("P", "N", "CD") == pytest.approx((1.474 - 0.168, 1.474 + 0.168))


def test_backbone_of_glycine_and_proline_is_their_own() -> None:
    assert BOND_LENGTHS["G"]["N", "CA"] == (1.456, 0.015)
    assert BOND_LENGTHS["P"]["N", "CA"] == (1.468, 0.017)
    assert BOND_LENGTHS["W"]["N", "CA"] == (1.459, 0.020)
    assert {letter: BOND_ANGLES[letter]["N", "CA", "C"][0] for letter in "GPW"} == {
        "G": 113.1,
        "P": 112.1,
        "W": 111.0,
    }


@pytest.mark.parametrize("letter", RESIDUES)
def test_distance_across_an_angle_and_its_error_by_finite_differences(letter: str) -> None:
    lengths = {frozenset(pair): value for pair, value in BOND_LENGTHS[letter].items()}

    def across(a: float, b: float, degrees: float) -> float:
        corner = math.radians(degrees)
        return math.dist((a, 0), (b * math.cos(corner), b * math.sin(corner)))

    for (first, corner, last), angle in BOND_ANGLES[letter].items():
        three = lengths[frozenset((first, corner))], lengths[frozenset((corner, last))], angle
        means = [mean for mean, _ in three]
        variance = 0.0
        for i, (mean, std) in enumerate(three):
            up, down = ([*means[:i], mean + h * std, *means[i + 1 :]] for h in (1e-3, -1e-3))
            variance += ((across(*up) - across(*down)) / 2e-3) ** 2
        tolerance = 12 * math.sqrt(variance)
        expected = across(*means) - tolerance, across(*means) + tolerance
        assert bounds(letter, first, last) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("letter", "one", "two", "nearest"),
    [
        ("A", "CB", "O", 1.70 + 1.52 - 1.5),
        ("G", "N", "O", 1.55 + 1.52 - 1.5),
        ("M", "SD", "N", 1.80 + 1.55 - 1.5),
        ("F", "CG", "CZ", 1.70 + 1.70 - 1.5),
    ],
)
def test_other_pairs_have_only_a_lower_bound(letter, one, two, nearest) -> None:
    assert bounds(letter, one, two) == pytest.approx((nearest, math.inf))


def test_bounds_are_those_of_pairs_of_atoms_that_exist() -> None:
    np.testing.assert_array_equal(DISTANCE_LOWER, DISTANCE_LOWER.swapaxes(1, 2))
    np.testing.assert_array_equal(DISTANCE_UPPER, DISTANCE_UPPER.swapaxes(1, 2))
    assert (DISTANCE_LOWER < DISTANCE_UPPER).all()
    for aatype, letter in enumerate(RESIDUES_X):
        pair = np.zeros((14, 14), dtype=bool)
        pair[: len(ATOM14[letter]), : len(ATOM14[letter])] = True
        np.fill_diagonal(pair, False)
        assert (DISTANCE_LOWER[aatype][pair] > 0.6).all()
        assert (DISTANCE_LOWER[aatype][~pair] == 0).all()
        assert np.isinf(DISTANCE_UPPER[aatype][~pair]).all()


def test_radii_are_those_of_the_elements() -> None:
    assert ATOM14_RADIUS[AATYPE["C"], :7] == pytest.approx([1.55, 1.7, 1.7, 1.52, 1.7, 1.8, 0])
    assert (ATOM14_RADIUS > 0).sum(-1).tolist() == [len(ATOM14[letter]) for letter in RESIDUES_X]


def test_x_is_alanine() -> None:
    for table in (ATOM14_RADIUS, DISTANCE_LOWER, DISTANCE_UPPER):
        np.testing.assert_array_equal(table[UNKNOWN], table[AATYPE["A"]])


def test_angles_at_the_peptide_bond_and_the_trans_distance_of_neighbours() -> None:
    assert math.degrees(math.acos(COS_CA_C_N[0])) == pytest.approx(116.57, abs=0.01)
    assert math.degrees(math.acos(COS_C_N_CA[0])) == pytest.approx(121.35, abs=0.01)
    # Cα to Cα across a planar trans bond: 3.80 Å, the best known distance in proteins.
    ca_c, n_ca = BOND_LENGTHS["A"]["CA", "C"][0], BOND_LENGTHS["A"]["N", "CA"][0]
    ca = np.array((COS_CA_C_N[0] * ca_c, math.sqrt(1 - COS_CA_C_N[0] ** 2) * ca_c))
    next_ca = np.array((-COS_C_N_CA[0] * n_ca, -math.sqrt(1 - COS_C_N_CA[0] ** 2) * n_ca))
    distance = np.linalg.norm(next_ca + np.array((C_N_LENGTH[0], 0)) - ca)
    assert distance == pytest.approx(3.80, abs=0.01)
