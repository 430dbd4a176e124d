"""Finds the amino acids of a file under the names that programs give them and their atoms.

Force fields have names of their own for protonation states, disulfides and chain ends: HIE is a
histidine, CYX a cysteine in a bridge, NMET the first methionine of a chain. Some of these names
mean other molecules in the PDB's dictionary (HIP is phosphohistidine, HSE homoserine), so a
residue's atoms decide: the name is an alias only where every heavy atom is the amino acid's own.
"""

from functools import cache

import gemmi

from esmfold_peft.protein.residues import ATOM14, ATOM37_INDEX, ONE_TO_THREE, RESIDUES

STANDARD = {ONE_TO_THREE[letter]: letter for letter in RESIDUES}
"""Three-letter names of the twenty to their letters."""

LETTERS = STANDARD | {"MSE": "M"}

_CAPS = frozenset("ACE ACY BOC CBX FOR NAC NH2 NHE NHH NMA NME".split())
"""Groups that close the ends of a chain, but are no amino acids."""

_NOT_HEAVY = ("H", "D", *"0123456789", "LP")
"""Beginnings of the names of hydrogens (HA, 1HB), deuterium and lone pairs in the twenty."""

_PATCHES = {"CAY", "CY", "OY", "NT", "CAT"}
"""Atoms of caps that CHARMM writes into the first or last residue."""

# AMBER, CHARMM, GROMACS (its ports of both, GROMOS, OPLS).
_FORCE_FIELDS = {
    "ARG": "ARN ARGN",
    "ASP": "ASH AS4 ASPH ASPP",
    "CYS": "CYX CYM CYN CYS1 CYS2 CYSH",
    "GLU": "GLH GL4 GLUH GLUP",
    "HIS": "HID HIE HIP HSD HSE HSP HIS1 HIS2 HISA HISB HISD HISE HISH HISP",
    "LYS": "LYN LSN LYP LYSH LYSN LYSP",
    "TYR": "TYM",
}


_INNER = {name: parent for parent, names in _FORCE_FIELDS.items() for name in names.split()}
_THREE = {name: parent for name, parent in _INNER.items() if len(name) == 3}
_THREE |= {name: name for name in STANDARD}
ALIASES = {end + name: parent for name, parent in _THREE.items() for end in "NC"} | _INNER
"""Force-field names to three-letter names; AMBER also marks the ends of a chain by N and C."""

# The oxygens at the end of a chain in CHARMM, GROMACS and X-PLOR.
_END_OXYGENS = {"OT1": "O", "OC1": "O", "O1": "O", "OT2": "OXT", "OC2": "OXT", "O2": "OXT"}
_OTHER_ATOMS = {"I": {"CD": "CD1"}, "M": {"SE": "SD"}}


_RENAMED = {letter: _END_OXYGENS | _OTHER_ATOMS.get(letter, {}) for letter in RESIDUES}
ATOM_COLUMNS = {
    letter: {name: ATOM37_INDEX[name] for name in (*ATOM14[letter], "OXT")}
    | {name: ATOM37_INDEX[column] for name, column in _RENAMED[letter].items()}
    for letter in RESIDUES
}
"""For each of the twenty, its atoms' names in files to their columns in atom37."""


def usual_name(residue: gemmi.Residue) -> str:
    """A residue's name in capitals; the amino acid's where the file has a force field's."""
    name = residue.name
    if name in LETTERS:  # most residues
        return name
    name = name.upper()
    parent = ALIASES.get(name)
    if parent is None:
        return name
    heavy = {atom.name.upper() for atom in residue} - _PATCHES
    heavy = {name for name in heavy if not name.startswith(_NOT_HEAVY)}
    return parent if heavy and heavy <= ATOM_COLUMNS[STANDARD[parent]].keys() else name


def letter_of(name: str) -> str:
    """The letter of a name in a sequence; X if it is none of the twenty."""
    name = name.upper()
    return LETTERS.get(ALIASES.get(name, name), "X")


def is_amino_acid(residue: gemmi.Residue) -> bool | None:
    """Whether a residue under its `usual_name` is an amino acid, by its name or its backbone.

    None for a Cα alone under an unknown name, which may be an ion: its neighbours decide.
    """
    known = _tabulated(residue.name)
    if known is not None and residue.name != "UNK":  # programs also call ligands UNK
        return known
    names = {atom.name.upper() for atom in residue}
    if names >= {"N", "CA", "C"}:
        return True
    return None if names == {"CA"} else False


def may_be_listed(name: str) -> bool:
    """Whether the sequence of a protein may have this name: no nucleotide or water, but a cap."""
    return name in _CAPS or _tabulated(name) is not False


def is_known(name: str) -> bool:
    """Whether the table of frequent residues has a name."""
    return _tabulated(name) is not None


@cache
def _tabulated(name: str) -> bool | None:
    """Whether the PDB's dictionary calls this an amino acid; None where gemmi has no entry."""
    if name in _CAPS:
        return False
    found = gemmi.find_tabulated_residue(name)
    return found.is_amino_acid() if found.found() else None
