"""Numeric tables of the rigid groups that torsions turn (AF2 Suppl. 1.8.1 and table 2).

A residue is eight rigid groups, one for the backbone and one for each torsion: backbone, ω of the
bond before the residue, φ, ψ, χ1, χ2, χ3, χ4. An atom belongs to the last group that moves it.
Every table has a row per `aatype`; X is built as alanine (`protein.residues`).
"""

import numpy as np

from esmfold_peft.protein.residues import (
    AMBIGUOUS_ATOMS,
    ATOM14,
    CHI_ATOMS,
    CHI_PI_PERIODIC,
    RESIDUES_X,
    cells_by_letter,
)

BACKBONE, PRE_OMEGA, PHI, PSI, CHI1 = range(5)
"""Positions of the groups; χ2, χ3 and χ4 follow χ1."""

GROUPS = 8

_LITERATURE = """
A: N 0 -0.525 1.363 0, CA 0 0 0 0, C 0 1.526 0 0, O 3 0.627 1.062 0, CB 0 -0.529 -0.774 -1.205
R: N 0 -0.524 1.362 0, CA 0 0 0 0, C 0 1.525 0 0, O 3 0.626 1.062 0, CB 0 -0.524 -0.778 -1.209,
   CG 4 0.616 1.390 0, CD 5 0.564 1.414 0, NE 6 0.539 1.357 0, CZ 7 0.758 1.093 0,
   NH1 7 0.206 2.301 0, NH2 7 2.078 0.978 0
N: N 0 -0.536 1.357 0, CA 0 0 0 0, C 0 1.526 0 0, O 3 0.625 1.062 0, CB 0 -0.531 -0.787 -1.200,
   CG 4 0.584 1.399 0, OD1 5 0.633 1.059 0, ND2 5 0.593 -1.188 0.001
D: N 0 -0.525 1.362 0, CA 0 0 0 0, C 0 1.527 0 0, O 3 0.626 1.062 0, CB 0 -0.526 -0.778 -1.208,
   CG 4 0.593 1.398 0, OD1 5 0.610 1.091 0, OD2 5 0.592 -1.101 -0.003
C: N 0 -0.522 1.362 0, CA 0 0 0 0, C 0 1.524 0 0, O 3 0.625 1.062 0, CB 0 -0.519 -0.773 -1.212,
   SG 4 0.728 1.653 0
Q: N 0 -0.526 1.361 0, CA 0 0 0 0, C 0 1.526 0 0, O 3 0.626 1.062 0, CB 0 -0.525 -0.779 -1.207,
   CG 4 0.615 1.393 0, CD 5 0.587 1.399 0, OE1 6 0.634 1.060 0, NE2 6 0.593 -1.189 -0.001
E: N 0 -0.528 1.361 0, CA 0 0 0 0, C 0 1.526 0 0, O 3 0.626 1.062 0, CB 0 -0.526 -0.781 -1.207,
   CG 4 0.615 1.392 0, CD 5 0.600 1.397 0, OE1 6 0.607 1.095 0, OE2 6 0.589 -1.104 -0.001
G: N 0 -0.572 1.337 0, CA 0 0 0 0, C 0 1.517 0 0, O 3 0.626 1.062 0
H: N 0 -0.527 1.360 0, CA 0 0 0 0, C 0 1.525 0 0, O 3 0.625 1.063 0, CB 0 -0.525 -0.778 -1.208,
   CG 4 0.600 1.370 0, ND1 5 0.744 1.160 0, CD2 5 0.889 -1.021 0.003, CE1 5 2.030 0.851 0.002,
   NE2 5 2.145 -0.466 0.004
I: N 0 -0.493 1.373 0, CA 0 0 0 0, C 0 1.527 0 0, O 3 0.627 1.062 0, CB 0 -0.536 -0.793 -1.213,
   CG1 4 0.534 1.437 0, CG2 4 0.540 -0.785 -1.199, CD1 5 0.619 1.391 0
L: N 0 -0.520 1.363 0, CA 0 0 0 0, C 0 1.525 0 0, O 3 0.625 1.063 0, CB 0 -0.522 -0.773 -1.214,
   CG 4 0.678 1.371 0, CD1 5 0.530 1.430 0, CD2 5 0.535 -0.774 1.200
K: N 0 -0.526 1.362 0, CA 0 0 0 0, C 0 1.526 0 0, O 3 0.626 1.062 0, CB 0 -0.524 -0.778 -1.208,
   CG 4 0.619 1.390 0, CD 5 0.559 1.417 0, CE 6 0.560 1.416 0, NZ 7 0.554 1.387 0
M: N 0 -0.521 1.364 0, CA 0 0 0 0, C 0 1.525 0 0, O 3 0.625 1.062 0, CB 0 -0.523 -0.776 -1.210,
   CG 4 0.613 1.391 0, SD 5 0.703 1.695 0, CE 6 0.320 1.786 0
F: N 0 -0.518 1.363 0, CA 0 0 0 0, C 0 1.524 0 0, O 3 0.626 1.062 0, CB 0 -0.525 -0.776 -1.212,
   CG 4 0.607 1.377 0, CD1 5 0.709 1.195 0, CD2 5 0.706 -1.196 0, CE1 5 2.102 1.198 0,
   CE2 5 2.098 -1.201 0, CZ 5 2.794 -0.003 -0.001
P: N 0 -0.566 1.351 0, CA 0 0 0 0, C 0 1.527 0 0, O 3 0.621 1.066 0, CB 0 -0.546 -0.611 -1.293,
   CG 4 0.382 1.445 0, CD 5 0.477 1.424 0
S: N 0 -0.529 1.360 0, CA 0 0 0 0, C 0 1.525 0 0, O 3 0.626 1.062 0, CB 0 -0.518 -0.777 -1.211,
   OG 4 0.503 1.325 0
T: N 0 -0.517 1.364 0, CA 0 0 0 0, C 0 1.526 0 0, O 3 0.626 1.062 0, CB 0 -0.516 -0.793 -1.215,
   OG1 4 0.472 1.353 0, CG2 4 0.550 -0.718 -1.228
W: N 0 -0.521 1.363 0, CA 0 0 0 0, C 0 1.525 0 0, O 3 0.627 1.062 0, CB 0 -0.523 -0.776 -1.212,
   CG 4 0.609 1.370 0, CD1 5 0.824 1.091 0, CD2 5 0.854 -1.148 -0.005, NE1 5 2.140 0.690 -0.004,
   CE2 5 2.186 -0.678 -0.007, CE3 5 0.622 -2.530 -0.007, CZ2 5 3.283 -1.543 -0.011,
   CZ3 5 1.715 -3.389 -0.011, CH2 5 3.028 -2.890 -0.013
Y: N 0 -0.522 1.362 0, CA 0 0 0 0, C 0 1.524 0 0, O 3 0.627 1.062 0, CB 0 -0.522 -0.776 -1.213,
   CG 4 0.607 1.382 0, CD1 5 0.716 1.195 0, CD2 5 0.713 -1.194 -0.001, CE1 5 2.107 1.200 -0.002,
   CE2 5 2.104 -1.201 -0.003, CZ 5 2.791 -0.001 -0.003, OH 5 4.168 -0.002 -0.005
V: N 0 -0.494 1.373 0, CA 0 0 0 0, C 0 1.527 0 0, O 3 0.627 1.062 0, CB 0 -0.533 -0.795 -1.213,
   CG1 4 0.540 1.429 0, CG2 4 0.533 -0.776 1.203
"""
"""Atom, group and position in Å inside the frame of its group, from ideal bond lengths and angles.

The values are those of AlphaFold 2, on which its weights depend. A group's x axis is the bond that
its torsion turns and its origin the far end of that bond; the atom that defines the torsion lies in
the x-y plane with y > 0.
"""

_ATOMS = {
    letter: {name: (int(group), np.array(xyz, dtype=np.float64)) for name, group, *xyz in rows}
    for letter, rows in cells_by_letter(_LITERATURE).items()
}
_N = len(RESIDUES_X)


def _frame(x: np.ndarray, xy: np.ndarray, origin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Axes as columns: x along `x`, y along the part of `xy` at right angles to it."""
    x = x / np.linalg.norm(x)
    y = xy - (xy @ x) * x
    y /= np.linalg.norm(y)
    return np.stack((x, y, np.cross(x, y)), axis=1), origin


def _parent_frames(letter: str) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Each group's frame at torsion 0 in its parent: the backbone, or the χ before from χ2 on."""
    at = {name: position for name, (_, position) in _ATOMS[letter].items()}
    frames = {
        PHI: _frame(at["N"] - at["CA"], np.array([1.0, 0.0, 0.0]), at["N"]),
        # ψ is 0 where the next N is cis to this N; the O of this group then lies on the other side.
        PSI: _frame(at["C"] - at["CA"], at["CA"] - at["N"], at["C"]),
    }
    for chi, (first, start, end, _) in enumerate(CHI_ATOMS[letter]):
        if chi == 0:
            frames[CHI1] = _frame(at[end] - at[start], at[first] - at[start], at[end])
        else:  # the parent's origin is `start`, and `first` lies on its negative x axis
            frames[CHI1 + chi] = _frame(at[end], np.array([-1.0, 0.0, 0.0]), at[end])
    return frames


ATOM14_GROUP = np.zeros((_N, 14), dtype=np.int64)
ATOM14_LITERATURE_POSITIONS = np.zeros((_N, 14, 3), dtype=np.float32)
"""(21, 14) group of each atom, and (21, 14, 3) its position in Å in the frame of that group; 0
where no atom."""

# DISCREPANCY: AlphaFold 2 fills the groups a residue lacks with zeros; identity keeps every frame a
# rotation.
DEFAULT_ROTATION = np.tile(np.eye(3, dtype=np.float32), (_N, GROUPS, 1, 1))
DEFAULT_TRANSLATION = np.zeros((_N, GROUPS, 3), dtype=np.float32)
"""(21, 8, 3, 3) and (21, 8, 3): each group's frame at torsion 0 in the frame of its parent, which
is the backbone, and the χ before for χ2 to χ4. Identity for ω (no atom of the residue turns with
it) and for groups that do not exist."""

GROUP_ATOMS = np.zeros((_N, GROUPS, 3), dtype=np.int64)
GROUP_EXISTS = np.zeros((_N, GROUPS), dtype=bool)
"""(21, 8, 3) atom14 columns that define the frame (on the x axis, origin, upper half of the x-y
plane), and (21, 8) which groups have such atoms. The first atom lies on the negative x axis, but on
the positive one for the backbone. ω and φ have none: they move no heavy atom of their residue."""

TORSION_ATOMS = np.zeros((_N, 7, 4), dtype=np.int64)
TORSION_EXISTS = np.zeros((_N, 7), dtype=bool)
"""(21, 7, 4) the atoms of ω, φ, ψ, χ1 to χ4 as columns of the atom14 of the previous residue
followed by those of this one (0 to 27), and (21, 7) which torsions exist. The ψ given is that of O,
which differs from ψ by π."""

CHI_IS_PI_PERIODIC = np.zeros((_N, 4), dtype=bool)
"""(21, 4) which χ look the same after half a turn."""

AMBIGUOUS_SWAP = np.tile(np.arange(14), (_N, 1))
"""(21, 14) column that takes an atom's place when the ambiguous names are swapped; its own where
there is no choice."""


def _fill(aatype: int, letter: str) -> None:
    """Writes the row of a residue in every table."""
    names = ATOM14[letter]
    for column, name in enumerate(names):
        ATOM14_GROUP[aatype, column], position = _ATOMS[letter][name]
        ATOM14_LITERATURE_POSITIONS[aatype, column] = position
    for group, frame in _parent_frames(letter).items():
        DEFAULT_ROTATION[aatype, group], DEFAULT_TRANSLATION[aatype, group] = frame
    triples = {BACKBONE: ("C", "CA", "N"), PSI: ("CA", "C", "O")}
    triples |= {CHI1 + chi: atoms[1:] for chi, atoms in enumerate(CHI_ATOMS[letter])}
    for group, atoms in triples.items():
        GROUP_ATOMS[aatype, group] = [names.index(name) for name in atoms]
        GROUP_EXISTS[aatype, group] = True
    columns = {name: 14 + i for i, name in enumerate(names)}
    columns |= {f"previous {name}": i for i, name in enumerate(("N", "CA", "C", "O"))}
    quadruples = (
        ("previous CA", "previous C", "N", "CA"),
        ("previous C", "N", "CA", "C"),
        ("N", "CA", "C", "O"),
        *CHI_ATOMS[letter],
    )
    for torsion, atoms in enumerate(quadruples):
        TORSION_ATOMS[aatype, torsion] = [columns[name] for name in atoms]
        TORSION_EXISTS[aatype, torsion] = True
    CHI_IS_PI_PERIODIC[aatype, list(CHI_PI_PERIODIC.get(letter, ()))] = True
    for pair in AMBIGUOUS_ATOMS.get(letter, ()):
        both = [names.index(name) for name in pair]
        AMBIGUOUS_SWAP[aatype, both] = both[::-1]


for _aatype, _letter in enumerate(RESIDUES_X):
    _fill(_aatype, _letter)
