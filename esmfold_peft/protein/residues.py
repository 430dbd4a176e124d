"""Tables of the twenty amino acids: names, atoms, torsion atoms, ambiguous atoms.

Orders are those of AlphaFold 2 (alphabetical by three-letter name), so that weights and tables of
that family of models carry over.
"""

import re

import numpy as np

RESIDUES = "ARNDCQEGHILKMFPSTWYV"
"""One-letter codes; the position of a letter is its `aatype`."""

UNKNOWN = len(RESIDUES)
"""`aatype` of X, any residue outside the standard twenty."""

RESIDUES_X = RESIDUES + "X"

AATYPE = {letter: index for index, letter in enumerate(RESIDUES_X)}

_THREE_LETTERS = (
    "ALA ARG ASN ASP CYS GLN GLU GLY HIS ILE LEU LYS MET PHE PRO SER THR TRP TYR VAL UNK"
)
ONE_TO_THREE = dict(zip(RESIDUES_X, _THREE_LETTERS.split(), strict=True))
THREE_TO_ONE = {three: one for one, three in ONE_TO_THREE.items()}

ATOM37 = tuple(
    "N CA C CB O CG CG1 CG2 OG OG1 SG CD CD1 CD2 ND1 ND2 OD1 OD2 SD CE CE1 CE2 CE3 NE NE1 NE2 "
    "OE1 OE2 CH2 NH1 NH2 OH CZ CZ2 CZ3 NZ OXT".split()
)
"""Every heavy atom name of the twenty amino acids, one column each."""

ATOM37_INDEX = {name: index for index, name in enumerate(ATOM37)}

_SIDE_CHAINS = {
    "A": ("CB", ""),
    "R": ("CB CG CD NE CZ NH1 NH2", "CG CD NE CZ"),
    "N": ("CB CG OD1 ND2", "CG OD1"),
    "D": ("CB CG OD1 OD2", "CG OD1"),
    "C": ("CB SG", "SG"),
    "Q": ("CB CG CD OE1 NE2", "CG CD OE1"),
    "E": ("CB CG CD OE1 OE2", "CG CD OE1"),
    "G": ("", ""),
    "H": ("CB CG ND1 CD2 CE1 NE2", "CG ND1"),
    "I": ("CB CG1 CG2 CD1", "CG1 CD1"),
    "L": ("CB CG CD1 CD2", "CG CD1"),
    "K": ("CB CG CD CE NZ", "CG CD CE NZ"),
    "M": ("CB CG SD CE", "CG SD CE"),
    "F": ("CB CG CD1 CD2 CE1 CE2 CZ", "CG CD1"),
    "P": ("CB CG CD", "CG CD"),
    "S": ("CB OG", "OG"),
    "T": ("CB OG1 CG2", "OG1"),
    "W": ("CB CG CD1 CD2 NE1 CE2 CE3 CZ2 CZ3 CH2", "CG CD1"),
    "Y": ("CB CG CD1 CD2 CE1 CE2 CZ OH", "CG CD1"),
    "V": ("CB CG1 CG2", "CG1"),
    # DISCREPANCY: AlphaFold 2 gives X no atoms, so a predicted X leaves a hole in the file. Here X
    # is built as alanine (the convention of UNK in the PDB) and has no atoms in truth and losses.
    "X": ("CB", ""),
}
"""Atoms of the side chain, and those at the far ends of its torsions χ1 to χ4."""

ATOM14 = {letter: ("N", "CA", "C", "O", *_SIDE_CHAINS[letter][0].split()) for letter in RESIDUES_X}
"""The heavy atoms of each residue without OXT, in the compact order of AlphaFold 2 (at most 14)."""


def _chi_atoms(ends: list[str]) -> tuple[tuple[str, ...], ...]:
    path = ("N", "CA", "CB", *ends)
    return tuple(path[chi : chi + 4] for chi in range(len(ends)))


CHI_ATOMS = {letter: _chi_atoms(_SIDE_CHAINS[letter][1].split()) for letter in RESIDUES_X}
"""The four atoms of each side-chain torsion χ1 to χ4."""

CHI_PI_PERIODIC = {"D": (1,), "E": (2,), "F": (1,), "Y": (1,)}
"""Torsions (0-based χ) that a turn by π leaves unchanged, because the atoms they move are alike."""

AMBIGUOUS_ATOMS = {
    "D": (("OD1", "OD2"),),
    "E": (("OE1", "OE2"),),
    "F": (("CD1", "CD2"), ("CE1", "CE2")),
    "Y": (("CD1", "CD2"), ("CE1", "CE2")),
}
"""Pairs of atoms whose names may be swapped (AF2 Suppl. table 3)."""


ATOM14_MASK = np.arange(14) < np.array([len(ATOM14[x]) for x in RESIDUES_X])[:, None]
"""(21, 14) which columns of atom14 exist."""

ATOM14_TO_ATOM37 = np.zeros((len(RESIDUES_X), 14), dtype=np.int64)
"""(21, 14) column of atom37 that each column of atom14 holds; 0 where there is no atom."""
ATOM14_TO_ATOM37[ATOM14_MASK] = [ATOM37_INDEX[name] for x in RESIDUES_X for name in ATOM14[x]]


def encode(sequence: str) -> np.ndarray:
    """`aatype` (int64, 0 to 20) of one-letter codes; every letter outside the twenty becomes X."""
    return np.array([AATYPE.get(letter, UNKNOWN) for letter in sequence], dtype=np.int64)


def cells_by_letter(text: str) -> dict[str, list[list[str]]]:
    """The cells of a table in text, split at blanks, by residue; X has those of alanine.

    A residue begins a line ("R: CA 0 0 0, C ..."); its other lines begin with a blank.
    """
    rows = re.findall(r"^(\w): ((?:.|\n )+)", text, re.MULTILINE)
    cells = {letter: [cell.split() for cell in row.split(",")] for letter, row in rows}
    return cells | {"X": cells["A"]}
