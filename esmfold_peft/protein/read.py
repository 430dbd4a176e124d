"""Reading protein chains from mmCIF and PDB files.

The reader keeps the first model of a file; in each residue, the atoms without an alternative
location and those of the alternative with the highest summed occupancy (the first of equals); where
a position of the sequence holds several residues (microheterogeneity), the one that the sequence
lists first. Atoms of occupancy 0 (unless the file is a prediction) or of unknown coordinates are
not resolved and are dropped, as are hydrogens. MSE is read as MET, its selenium as SD; force-field
names are their amino acids; every other residue outside the standard twenty is X and has no atoms
(in a prediction, those it has). NH1 and NH2 of arginine are exchanged where NH2 is closer to CD.
The chain's `notes` list everything else that is left out.
"""

import re
from pathlib import Path

import gemmi
import numpy as np
from jaxtyping import Bool, Float32, Int64

from esmfold_peft.disk.files import decompressed, read_bytes
from esmfold_peft.errors import UserError
from esmfold_peft.protein.amino_acids import ATOM_COLUMNS
from esmfold_peft.protein.entry import Entry, file_stem, parse_entry, refusing_damage
from esmfold_peft.protein.placement import Placed, place_residues
from esmfold_peft.protein.polymers import Polymer, listed
from esmfold_peft.protein.residues import AATYPE, ATOM37, ATOM37_INDEX, RESIDUES_X, UNKNOWN, encode
from esmfold_peft.protein.structure import ProteinStructure

_PDB_CODE = re.compile(r"[0-9][a-z0-9]{3}|pdb_[0-9a-z]{8}", re.IGNORECASE)
_PDB_FILE = re.compile(r"pdb([0-9][a-z0-9]{3})", re.IGNORECASE)
# Atom names as gemmi gives them in arrays: eight bytes each, here taken as one number.
_NAMES = np.array(sorted({*ATOM37, *(n for names in ATOM_COLUMNS.values() for n in names)}), "S8")
_NAMES = _NAMES[np.argsort(_NAMES.view(np.uint64))]
_KEYS = _NAMES.view(np.uint64)


def _column_table() -> Int64[np.ndarray, "21 names"]:
    """Column of atom37 for each residue and name; -1 where the residue has no such atom.

    X, which is read from predictions only, has the atoms whose names are in atom37.
    """
    table = np.full((len(RESIDUES_X), len(_NAMES)), -1, dtype=np.int64)
    for letter, columns in (ATOM_COLUMNS | {"X": ATOM37_INDEX}).items():
        table[AATYPE[letter]] = [columns.get(name, -1) for name in _NAMES.astype(str)]
    return table


_COLUMNS = _column_table()
_HYDROGENS = np.isin(np.arange(256), list(b"HD0123456789"))
"""First letters of hydrogens and deuterium: HA, 1HB, D."""
_FARTHEST = 1e6
"""Å; float32 has steps of 0.06 Å there."""
_CD = ATOM37_INDEX["CD"]
_NH = np.array([ATOM37_INDEX["NH1"], ATOM37_INDEX["NH2"]])
_ATOM = np.dtype(
    [
        ("place", np.int64),  # of the residue in the sequence
        ("name", "S8"),  # as in the file, in capitals
        ("heavy", bool),  # no hydrogen, and its residue is one of the twenty
        ("column", np.int64),  # in atom37; -1 for an atom foreign to its residue
        ("altloc", np.uint8),  # character code of the alternative location; 0 without one
        ("occupancy", np.float32),
        ("position", np.float32, 3),
        ("b_factor", np.float32),
    ]
)


class NoProteinError(UserError):
    """A file with coordinates has no protein among them."""


def read_structure(path: Path, chain: str | None = None) -> ProteinStructure:
    """Reads the protein chain of an author's name (auth_asym_id); None takes the first.

    Raises:
        UserError: as `read_chains`, or the file has no such chain.
    """
    chains = read_chains(path)
    found = next((each for each in chains if chain in (None, each.chain)), None)
    if found is None:
        present = ", ".join(each.chain for each in chains)
        raise UserError(f'{path}: no protein chain "{chain}" (the file has {present})')
    return found


def read_chains(path: Path) -> list[ProteinStructure]:
    """Reads every protein chain of an mmCIF or PDB file, plain or gzip-compressed, in its order.

    The sequence is the deposited one (entity_poly_seq, SEQRES), unresolved residues included. A
    file without one, or with one that is not the modelled protein's (more than a tenth of the
    residues have no place in it, or half have another letter), gives the residues in its
    coordinates, numbered by `numbering.places`. Chains without a single known atom (unknown
    residues only) are returned too.

    A chain is named `1ubq_A` after a PDB entry, otherwise after the entry's id or the file, with
    the author's chain appended if the file has several.

    Raises:
        UserError: the file cannot be read, is damaged, or has no coordinates or no protein chain.
    """
    return parse_chains(read_bytes(path), str(path))


def parse_chains(
    data: bytes, place: str, *, occupied: bool = True, modified: bool = False
) -> list[ProteinStructure]:
    """Reads every protein chain from the content of a file, as `read_chains` does.

    Args:
        data: the content, plain or gzip-compressed.
        place: a path for messages, or a member of an archive
            ("folder/shard.tar/1abc_A.cif.gz"). Its last component without endings is the entry's
            name where the file states none.
        occupied: drop atoms of occupancy 0. In an experiment they were not seen; in a model the
            occupancies mean nothing.
        modified: modified residues keep the atoms that one of the twenty has too.

    Raises:
        UserError: the content is empty, damaged, neither mmCIF nor PDB, or has no coordinates or
            no protein chain.
    """
    return parse_models(data, place, occupied=occupied, modified=modified)[0]


def parse_models(
    data: bytes, place: str, *, occupied: bool = True, modified: bool = False
) -> tuple[list[ProteinStructure], int]:
    """Reads the chains of the first model as `parse_chains` does, and counts the models."""
    entry = parse_entry(decompressed(data, place), place)
    if not entry.polymers:
        raise NoProteinError("; ".join((f"{place}: no protein chain", *entry.notes)))
    with refusing_damage(place):
        for polymer in entry.polymers:
            if not (polymer.author + polymer.label).isprintable():
                raise UserError(f"{place}: chain name {polymer.author!r} is not printable")
        chains = [_chain(entry, each, occupied, modified) for each in entry.polymers]
    return chains, len(entry.structure)


def _chain(entry: Entry, polymer: Polymer, occupied: bool, modified: bool) -> ProteinStructure:
    found = place_residues(polymer, modified=modified)
    names = [""] * len(found.sequence)
    for place, residue in found.residues.items():
        names[place] = str(residue.seqid)
    atoms = _listed(found, modified=modified)
    positions, atom_mask, b_factors, lost = _atoms(atoms, len(found.sequence), occupied=occupied)
    swapped = _misnamed_arginine(found.sequence, positions, atom_mask)
    for array in (positions, b_factors):
        array[np.ix_(swapped, _NH)] = array[np.ix_(swapped, _NH[::-1])]
    return ProteinStructure(
        id=_name(entry.name, polymer.author, alone=len(entry.polymers) == 1),
        sequence=found.sequence,
        residue_index=found.residue_index,
        residue_names=tuple(names),
        positions=positions,
        atom_mask=atom_mask,
        b_factors=b_factors,
        chain=polymer.author,
        resolution=entry.resolution,
        method=entry.method,
        release_date=entry.release_date,
        entity=polymer.entity,
        notes=(*entry.notes, *polymer.notes, *found.notes, *lost),
    )


def id_after_file(place: str, chain: str, *, alone: bool) -> str:
    """The id of a chain (by its author's name) after its file, not after the stated entry."""
    return _name(_PDB_FILE.sub(r"\1", file_stem(place)), chain, alone=alone)


def is_pdb_id(chain_id: str) -> bool:
    """Whether a chain is named after a PDB entry, as 1ubq_A is."""
    return re.match(rf"(?:{_PDB_CODE.pattern})_", chain_id, re.IGNORECASE) is not None


def _name(entry: str, author: str, *, alone: bool) -> str:
    if _PDB_CODE.fullmatch(entry):
        return f"{entry.lower()}_{author}"
    return entry if alone else f"{entry}_{author}"


def _atoms(
    atoms: np.ndarray, n: int, *, occupied: bool
) -> tuple[
    Float32[np.ndarray, "n 37 3"],
    Bool[np.ndarray, "n 37"],
    Float32[np.ndarray, "n 37"],
    list[str],
]:
    """Positions, mask and B-factors of n residues, and notes on the atoms that are left out."""
    notes = []
    seen = (atoms["occupancy"] > 0) | (not occupied)
    if len(seen) and not seen.any():
        notes.append("all occupancies are 0, so no atom counts as resolved")
    known = ~np.isnan(atoms["position"]).any(-1)
    near = (np.abs(atoms["position"]) < _FARTHEST).all(-1)
    if far := int((seen & known & ~near).sum()):
        notes.append(f"{far} atoms are left out, farther than {_FARTHEST:,.0f} Å from the origin")
    atoms = atoms[seen & near]
    atoms = atoms[_one_conformer(atoms)]
    if foreign := sorted(set(atoms["name"][(atoms["column"] < 0) & atoms["heavy"]].tolist())):
        names = listed([name.decode("ascii", "replace") for name in foreign])
        notes.append(f"atom names foreign to their residue are left out: {names}")
    # Reversed: of atoms that a file lists twice, the first is the one that stays.
    atoms = atoms[atoms["column"] >= 0][::-1]
    slots = atoms["place"], atoms["column"]
    positions = np.zeros((n, len(ATOM37), 3), dtype=np.float32)
    mask = np.zeros((n, len(ATOM37)), dtype=bool)
    b_factors = np.zeros((n, len(ATOM37)), dtype=np.float32)
    positions[slots], mask[slots], b_factors[slots] = atoms["position"], True, atoms["b_factor"]
    if again := len(atoms) - int(mask.sum()):
        notes.append(f"{again} atoms are listed again under the same name; the first is read")
    return positions, mask, b_factors, notes


def _listed(found: Placed, *, modified: bool) -> np.ndarray:
    """The atoms of a chain's residues (`_ATOM`) in the order of the file.

    A loop over atoms in Python would take most of the time of reading a file. gemmi makes arrays of
    atoms, but of whole structures only, so a structure of the wanted residues is made.
    """
    chain = gemmi.Chain("A")
    rows = [place for place in found.residues if modified or found.sequence[place] != "X"]
    for place in rows:
        residue = chain.add_residue(found.residues[place])
        residue.subchain = residue.entity_id = ""  # they may be longer than FlatStructure takes
    structure = gemmi.Structure()
    structure.add_model(gemmi.Model(1)).add_chain(chain)
    flat = gemmi.FlatStructure(structure)
    place = np.repeat(np.array(rows, dtype=np.int64), [len(residue) for residue in chain])
    aatype = encode(found.sequence)[place]
    letters = np.ascontiguousarray(flat.atom_names).view(np.uint8)
    letters[(letters >= ord("a")) & (letters <= ord("z"))] -= ord("a") - ord("A")
    atoms = np.empty(len(place), dtype=_ATOM)
    atoms["place"] = place
    atoms["name"] = letters.view("S8")[:, 0]
    atoms["heavy"] = (aatype != UNKNOWN) & ~_HYDROGENS[letters[:, 0]]
    keys = letters.view(_KEYS.dtype)[:, 0]
    nearest = np.minimum(np.searchsorted(_KEYS, keys), len(_KEYS) - 1)
    atoms["column"] = np.where(_KEYS[nearest] == keys, _COLUMNS[aatype, nearest], -1)
    atoms["altloc"] = flat.altlocs.astype(np.uint8)
    atoms["occupancy"] = np.nan_to_num(flat.occ, nan=1.0)
    with np.errstate(over="ignore"):  # atoms too far for float32 are dropped later
        atoms["position"] = flat.pos
    atoms["b_factor"] = np.nan_to_num(flat.b_iso, posinf=0.0, neginf=0.0)
    return atoms


def _one_conformer(atoms: np.ndarray) -> Bool[np.ndarray, "m"]:
    """Which atoms are of the conformer that is read of each residue.

    The alternative is chosen once for the residue, not for each atom, so that conformers are never
    mixed.
    """
    chosen = atoms["altloc"] == 0
    some = atoms[~chosen]
    conformers, first, conformer = np.unique(
        some["place"] * 256 + some["altloc"], return_index=True, return_inverse=True
    )
    residues = conformers // 256
    occupancy = np.bincount(conformer, weights=some["occupancy"], minlength=len(conformers))
    # In each residue the highest occupancy comes first, and of equals the first in the file.
    order = np.lexsort((first, -occupancy, residues))
    best = order[np.diff(residues[order], prepend=-1) > 0]
    chosen[~chosen] = np.isin(conformer, best)
    return chosen


def _misnamed_arginine(
    sequence: str,
    positions: Float32[np.ndarray, "n 37 3"],
    atom_mask: Bool[np.ndarray, "n 37"],
) -> Bool[np.ndarray, "n"]:
    """Which residues are arginines whose NH2 is closer to CD than NH1 is (AF2 Suppl. 1.2.1)."""
    is_arginine = np.array([letter == "R" for letter in sequence], dtype=bool)
    known = atom_mask[:, [_CD, *_NH]].all(-1)
    to_nh1, to_nh2 = (np.linalg.norm(positions[:, k] - positions[:, _CD], axis=-1) for k in _NH)
    return is_arginine & known & (to_nh2 < to_nh1)
