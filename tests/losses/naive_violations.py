"""Violations of a chain, pair by pair: the oracle of test_violations.py."""

import math

from torch import Tensor

from esmfold_peft.protein.residues import ATOM14
from esmfold_peft.protein.stereochemistry import BOND_ANGLES, BOND_LENGTHS, VAN_DER_WAALS_RADIUS

N, CA, C = 0, 1, 2


def excess(value: float, mean: float, std: float) -> float:
    return max(math.sqrt((value - mean) ** 2 + 1e-6) - 12 * std, 0)


def naive_peptide(residue, after, next_letter: str) -> list[float]:
    """By how much the length and the cosines of the two angles are off."""

    def cosine(a: Tensor, corner: Tensor, b: Tensor) -> float:
        u, v = (a - corner).tolist(), (b - corner).tolist()
        long = math.sqrt(sum(x * x for x in u) + 1e-6) * math.sqrt(sum(x * x for x in v) + 1e-6)
        return sum(x * y for x, y in zip(u, v, strict=True)) / long

    length = math.sqrt(math.dist(residue[C].tolist(), after[N].tolist()) ** 2 + 1e-6)
    return [
        excess(length, *((1.341, 0.016) if next_letter == "P" else (1.329, 0.014))),
        excess(cosine(residue[CA], residue[C], after[N]), -0.4473, 0.0311),
        excess(cosine(residue[C], after[N], after[CA]), -0.5203, 0.0353),
    ]


def naive_bounds(letter: str, one: str, two: str) -> tuple[float, float]:
    """Of a distance within a residue."""
    lengths = {frozenset(pair): value for pair, value in BOND_LENGTHS[letter].items()}
    if (bond := lengths.get(frozenset((one, two)))) is not None:
        return bond[0] - 12 * bond[1], bond[0] + 12 * bond[1]
    for (first, corner, last), (degrees, error) in BOND_ANGLES[letter].items():
        if {first, last} == {one, two}:
            (a, da), (b, db) = (
                lengths[frozenset((first, corner))],
                lengths[frozenset((corner, last))],
            )
            cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
            opposite = math.sqrt(a * a + b * b - 2 * a * b * cos)
            terms = (a - b * cos) * da, (b - a * cos) * db, a * b * sin * math.radians(error)
            std = math.hypot(*terms) / opposite
            return opposite - 12 * std, opposite + 12 * std
    return VAN_DER_WAALS_RADIUS[one[0]] + VAN_DER_WAALS_RADIUS[two[0]] - 1.5, math.inf


def naive(positions: Tensor, sequence: str, index: list[int]) -> tuple[float, list[int]]:
    """Loss of one chain and its four counts, pair by pair in double precision; X has no atoms."""
    x = positions.double()
    bonds = [
        naive_peptide(x[i], x[i + 1], sequence[i + 1])
        for i in range(len(sequence) - 1)
        if index[i + 1] - index[i] == 1 and "X" not in sequence[i : i + 2]
    ]
    clashes, within = [], []
    names = [() if letter == "X" else ATOM14[letter] for letter in sequence]
    atoms = [(i, column) for i, residue in enumerate(names) for column in range(len(residue))]
    for place, (i, a) in enumerate(atoms):
        for j, c in atoms[:place]:
            one, two = names[i][a], names[j][c]
            distance = math.sqrt(math.dist(x[i, a].tolist(), x[j, c].tolist()) ** 2 + 1e-10)
            peptide = (one, two) == ("N", "C") and index[i] - index[j] == 1
            if i == j:
                low, high = naive_bounds(sequence[i], one, two)
                within.append(max(low - distance, 0) + max(distance - high, 0))
            elif not peptide and not one == two == "SG":
                radii = VAN_DER_WAALS_RADIUS[one[0]] + VAN_DER_WAALS_RADIUS[two[0]]
                clashes.append(max(radii - 1.5 - distance, 0))
    loss = sum(map(sum, bonds)) / max(len(bonds), 1)
    counts = [
        sum(bond[0] > 0 for bond in bonds),
        sum(value > 0 for bond in bonds for value in bond[1:]),
        sum(value > 0 for value in clashes),
        sum(value > 0 for value in within),
    ]
    return loss + (2 * sum(clashes) + 4 * sum(within)) / len(atoms), counts
