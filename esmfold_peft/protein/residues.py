"""Tables of the twenty amino acids: names, atoms, torsion atoms, ambiguous atoms.

Orders are those of AlphaFold 2 (alphabetical by three-letter name), so that weights and tables of
that family of models carry over.
"""

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
    "A": "CB",
    "R": "CB CG CD NE CZ NH1 NH2",
    "N": "CB CG OD1 ND2",
    "D": "CB CG OD1 OD2",
    "C": "CB SG",
    "Q": "CB CG CD OE1 NE2",
    "E": "CB CG CD OE1 OE2",
    "G": "",
    "H": "CB CG ND1 CD2 CE1 NE2",
    "I": "CB CG1 CG2 CD1",
    "L": "CB CG CD1 CD2",
    "K": "CB CG CD CE NZ",
    "M": "CB CG SD CE",
    "F": "CB CG CD1 CD2 CE1 CE2 CZ",
    "P": "CB CG CD",
    "S": "CB OG",
    "T": "CB OG1 CG2",
    "W": "CB CG CD1 CD2 NE1 CE2 CE3 CZ2 CZ3 CH2",
    "Y": "CB CG CD1 CD2 CE1 CE2 CZ OH",
    "V": "CB CG1 CG2",
    # DISCREPANCY: AlphaFold 2 gives X no atoms, so a predicted X leaves a hole in the file. Here X
    # is built as alanine (the convention of UNK in the PDB) and has no atoms in truth and losses.
    "X": "CB",
}

ATOM14 = {letter: ("N", "CA", "C", "O", *_SIDE_CHAINS[letter].split()) for letter in RESIDUES_X}
"""The heavy atoms of each residue without OXT, in the compact order of AlphaFold 2 (at most 14)."""

CHI_ATOMS = {
    letter: tuple(tuple(chi.split("-")) for chi in text.split())
    for letter, text in {
        "A": "",
        "R": "N-CA-CB-CG CA-CB-CG-CD CB-CG-CD-NE CG-CD-NE-CZ",
        "N": "N-CA-CB-CG CA-CB-CG-OD1",
        "D": "N-CA-CB-CG CA-CB-CG-OD1",
        "C": "N-CA-CB-SG",
        "Q": "N-CA-CB-CG CA-CB-CG-CD CB-CG-CD-OE1",
        "E": "N-CA-CB-CG CA-CB-CG-CD CB-CG-CD-OE1",
        "G": "",
        "H": "N-CA-CB-CG CA-CB-CG-ND1",
        "I": "N-CA-CB-CG1 CA-CB-CG1-CD1",
        "L": "N-CA-CB-CG CA-CB-CG-CD1",
        "K": "N-CA-CB-CG CA-CB-CG-CD CB-CG-CD-CE CG-CD-CE-NZ",
        "M": "N-CA-CB-CG CA-CB-CG-SD CB-CG-SD-CE",
        "F": "N-CA-CB-CG CA-CB-CG-CD1",
        "P": "N-CA-CB-CG CA-CB-CG-CD",
        "S": "N-CA-CB-OG",
        "T": "N-CA-CB-OG1",
        "W": "N-CA-CB-CG CA-CB-CG-CD1",
        "Y": "N-CA-CB-CG CA-CB-CG-CD1",
        "V": "N-CA-CB-CG1",
        "X": "",
    }.items()
}
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


def _atom14_to_atom37() -> np.ndarray:
    index = np.zeros((len(RESIDUES_X), 14), dtype=np.int64)
    for aatype, letter in enumerate(RESIDUES_X):
        index[aatype, : len(ATOM14[letter])] = [ATOM37_INDEX[name] for name in ATOM14[letter]]
    return index


def _atom14_mask() -> np.ndarray:
    counts = np.array([len(ATOM14[letter]) for letter in RESIDUES_X])
    return np.arange(14) < counts[:, None]


ATOM14_TO_ATOM37 = _atom14_to_atom37()
"""(21, 14) column of atom37 that each column of atom14 holds; 0 where there is no atom."""

ATOM14_MASK = _atom14_mask()
"""(21, 14) which columns of atom14 exist."""


def encode(sequence: str) -> np.ndarray:
    """Turns one-letter codes into `aatype`; every letter outside the twenty becomes X.

    Args:
        sequence: n upper-case letters.

    Returns:
        (n,) int64, 0 to 20.
    """
    return np.array([AATYPE.get(letter, UNKNOWN) for letter in sequence], dtype=np.int64)
