"""Reading protein chains from mmCIF and PDB files.

What is kept of a file: the first model; in each residue the atoms without an alternative location
and those of the alternative with the highest summed occupancy (the first of equals); where a
position of the sequence holds several residues (microheterogeneity), the one that the sequence
lists first. Atoms of occupancy 0 (unless the file is a prediction) or of unknown coordinates are
not resolved and are dropped, as are hydrogens. MSE is read as MET, its selenium as SD; force-field
names are their amino acids; every other residue outside the standard twenty is X and has no atoms
(in a prediction, those it has). NH1 and NH2 of arginine are exchanged where NH2 is the one closer
to CD. The chain's `notes` list everything else that is left out.
"""

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import gemmi
import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8, UInt64

from esmfold_peft.disk.files import decompressed
from esmfold_peft.errors import UserError
from esmfold_peft.protein.amino_acids import ATOM_COLUMNS
from esmfold_peft.protein.entry import Entry, file_stem, open_entry, parse_entry, refusing_damage
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
        for place, name in enumerate(_NAMES.astype(str)):
            table[AATYPE[letter], place] = columns.get(name, -1)
    return table


_COLUMNS = _column_table()
_HYDROGENS = np.isin(np.arange(256), list(b"HD0123456789"))
"""First letters of hydrogens and deuterium: HA, 1HB, D."""
_FARTHEST = 1e6
"""Å; float32 has steps of 0.06 Å there."""
_NH_EXCHANGED = np.arange(len(ATOM37))
_NH_EXCHANGED[[ATOM37_INDEX["NH1"], ATOM37_INDEX["NH2"]]] = ATOM37_INDEX["NH2"], ATOM37_INDEX["NH1"]


class NoProteinError(UserError):
    """A file with coordinates has no protein among them."""


def read_structure(
    path: Path, chain: str | None = None, by: Literal["label", "author"] = "author"
) -> ProteinStructure:
    """Reads one protein chain of an mmCIF or PDB file, plain or gzip-compressed.

    The sequence is the deposited one (entity_poly_seq, SEQRES), unresolved residues included. A
    file without one, or with one that is not the modelled protein's (more than a tenth of the
    residues have no place in it, or half have another letter), gives the residues in its
    coordinates, numbered as `numbering.places` says.

    Args:
        path: the file.
        chain: name of the chain; None takes the first protein chain.
        by: whether `chain` is the author's name (auth_asym_id, the one in papers) or the label
            (label_asym_id).

    Returns:
        The chain, named `1ubq_A` after a PDB entry, otherwise after the entry's id or the file,
        with the author's chain appended if the file has several.

    Raises:
        UserError: the file cannot be read, has no coordinates or no protein chain, or not the one
            asked for.
    """
    entry = open_entry(path)
    with refusing_damage(entry.place):
        polymers = _polymers(entry)
        alone = len(polymers) == 1
        if chain is None:
            return _chain(entry, polymers[0], alone=alone)
        names = [polymer.author if by == "author" else polymer.label for polymer in polymers]
        if chain not in names:
            present = ", ".join(names)
            raise UserError(f'{path}: no protein chain "{chain}" (the file has {present})')
        return _chain(entry, polymers[names.index(chain)], alone=alone)


def read_chains(path: Path) -> list[ProteinStructure]:
    """Reads every protein chain of an mmCIF or PDB file as `read_structure` does, in its order.

    Chains without a single known atom (unknown residues only) are returned too.

    Raises:
        UserError: the file cannot be read, or has no coordinates or no protein chain.
    """
    return _chains(open_entry(path))


def parse_chains(
    data: bytes, place: str, *, occupied: bool = True, modified: bool = False
) -> list[ProteinStructure]:
    """Reads every protein chain from the content of an mmCIF or PDB file, as `read_chains` does.

    Args:
        data: the content, plain or gzip-compressed.
        place: what messages name: a path, or a member of an archive
            ("folder/shard.tar/1abc_A.cif.gz"). Its last component without endings is the entry's
            name where the file states none.
        occupied: whether atoms of occupancy 0 are dropped. In an experiment they were not seen; a
            model has seen none, and what it writes there means nothing.
        modified: whether modified residues keep the atoms that one of the twenty has too.

    Raises:
        UserError: the content is empty, damaged, neither mmCIF nor PDB, or has no coordinates or
            no protein chain.
    """
    return parse_models(data, place, occupied=occupied, modified=modified)[0]


def parse_models(
    data: bytes, place: str, *, occupied: bool = True, modified: bool = False
) -> tuple[list[ProteinStructure], int]:
    """Reads the chains of the first model as `parse_chains` does, and counts the models.

    Args:
        data: see `parse_chains`.
        place: see `parse_chains`.
        occupied: see `parse_chains`.
        modified: see `parse_chains`.

    Raises:
        UserError: as `parse_chains`.
    """
    entry = parse_entry(decompressed(data, place), place)
    return _chains(entry, occupied=occupied, modified=modified), len(entry.structure)


def _chains(
    entry: Entry, *, occupied: bool = True, modified: bool = False
) -> list[ProteinStructure]:
    with refusing_damage(entry.place):
        polymers = _polymers(entry)
        flags = {"alone": len(polymers) == 1, "occupied": occupied, "modified": modified}
        return [_chain(entry, polymer, **flags) for polymer in polymers]


def _polymers(entry: Entry) -> list[Polymer]:
    if not entry.polymers:
        raise NoProteinError("; ".join((f"{entry.place}: no protein chain", *entry.notes)))
    for polymer in entry.polymers:
        if not (polymer.author + polymer.label).isprintable():
            raise UserError(f"{entry.place}: chain name {polymer.author!r} is not printable")
    return entry.polymers


def _chain(
    entry: Entry,
    polymer: Polymer,
    *,
    alone: bool,
    occupied: bool = True,
    modified: bool = False,
) -> ProteinStructure:
    found = place_residues(polymer, modified=modified)
    names = [""] * len(found.sequence)
    for place, residue in found.residues.items():
        names[place] = str(residue.seqid)
    atoms = _listed(found, modified=modified)
    positions, atom_mask, b_factors, lost = _atoms(atoms, len(found.sequence), occupied=occupied)
    swapped = _misnamed_arginine(found.sequence, positions, atom_mask)
    for array in (positions, b_factors):
        array[swapped] = array[swapped][:, _NH_EXCHANGED]
    return ProteinStructure(
        id=_name(entry.name, polymer.author, alone=alone),
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
    """The id of a chain that is named after its file, whatever entry the file states.

    Args:
        place: of the file.
        chain: author's name of the chain.
        alone: whether it is the file's only one.
    """
    return _name(_PDB_FILE.sub(r"\1", file_stem(place)), chain, alone=alone)


def is_pdb_id(chain_id: str) -> bool:
    """Whether a chain is named after a PDB entry, as 1ubq_A is."""
    return re.match(rf"(?:{_PDB_CODE.pattern})_", chain_id, re.IGNORECASE) is not None


def _name(entry: str, author: str, *, alone: bool) -> str:
    if _PDB_CODE.fullmatch(entry):
        return f"{entry.lower()}_{author}"
    return entry if alone else f"{entry}_{author}"


def _atoms(
    atoms: "_Atoms", n: int, *, occupied: bool
) -> tuple[
    Float32[np.ndarray, "n 37 3"],
    Bool[np.ndarray, "n 37"],
    Float32[np.ndarray, "n 37"],
    list[str],
]:
    """Positions, mask and B-factors of n residues, and what is left out."""
    notes = []
    seen = atoms.occupancy > 0 if occupied else np.ones(len(atoms.place), dtype=bool)
    if len(seen) and not seen.any():
        notes.append("all occupancies are 0, so no atom counts as resolved")
    known = ~np.isnan(atoms.position).any(-1)
    near = (np.abs(atoms.position) < _FARTHEST).all(-1)
    if far := int((seen & known & ~near).sum()):
        notes.append(f"{far} atoms are left out, farther than {_FARTHEST:,.0f} Å from the origin")
    atoms = atoms[seen & near]
    atoms = atoms[_one_conformer(atoms)]
    if foreign := sorted(set(atoms.name[(atoms.column < 0) & atoms.heavy].tolist())):
        names = listed([name.decode("ascii", "replace") for name in foreign])
        notes.append(f"atom names foreign to their residue are left out: {names}")
    atoms = atoms[atoms.column >= 0]
    # Reversed: of atoms that a file lists twice, the first is the one that stays.
    slots = (atoms.place * len(ATOM37) + atoms.column)[::-1]
    positions = np.zeros((n * len(ATOM37), 3), dtype=np.float32)
    mask = np.zeros(n * len(ATOM37), dtype=bool)
    b_factors = np.zeros(n * len(ATOM37), dtype=np.float32)
    positions[slots] = atoms.position[::-1]
    mask[slots] = True
    if again := len(slots) - int(mask.sum()):
        notes.append(f"{again} atoms are listed again under the same name; the first is read")
    b_factors[slots] = atoms.b_factor[::-1]
    shape = (n, len(ATOM37))
    return positions.reshape(*shape, 3), mask.reshape(shape), b_factors.reshape(shape), notes


@dataclass(frozen=True)
class _Atoms:
    """The atoms of a chain's residues in the order of the file.

    Attributes:
        place: of the residue in the sequence.
        name: as in the file.
        column: in atom37; -1 for an atom foreign to its residue.
        heavy: whether it is of one of the twenty and no hydrogen.
        altloc: character code of the alternative location; 0 without one.
    """

    place: Int64[np.ndarray, "m"]
    name: np.ndarray
    heavy: Bool[np.ndarray, "m"]
    column: Int64[np.ndarray, "m"]
    altloc: UInt8[np.ndarray, "m"]
    occupancy: Float32[np.ndarray, "m"]
    position: Float32[np.ndarray, "m 3"]
    b_factor: Float32[np.ndarray, "m"]

    def __getitem__(self, which: Bool[np.ndarray, "m"]) -> "_Atoms":
        if which.all():
            return self
        return _Atoms(**{field.name: getattr(self, field.name)[which] for field in fields(self)})


def _listed(found: Placed, *, modified: bool) -> _Atoms:
    """The atoms as gemmi has them.

    A loop over atoms in Python is most of the time of reading a file; gemmi makes arrays of them,
    but of whole structures only, hence one with nothing but the residues wanted.
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
    if (letters >= ord("a")).any():
        letters[(letters >= ord("a")) & (letters <= ord("z"))] -= ord("a") - ord("A")
    with np.errstate(over="ignore"):  # what is too far for float32 is dropped later
        position = flat.pos.astype(np.float32)
    return _Atoms(
        place=place,
        name=letters.view("S8")[:, 0],
        heavy=(aatype != UNKNOWN) & ~_HYDROGENS[letters[:, 0]],
        column=_columns(aatype, letters.view(_KEYS.dtype)[:, 0]),
        altloc=flat.altlocs.astype(np.uint8),
        occupancy=np.nan_to_num(flat.occ, nan=1.0),
        position=position,
        b_factor=np.nan_to_num(flat.b_iso, posinf=0.0, neginf=0.0),
    )


def _columns(
    aatype: Int64[np.ndarray, "m"], keys: UInt64[np.ndarray, "m"]
) -> Int64[np.ndarray, "m"]:
    """Columns of atoms in atom37, -1 for one foreign to its residue."""
    nearest = np.minimum(np.searchsorted(_KEYS, keys), len(_KEYS) - 1)
    return np.where(_KEYS[nearest] == keys, _COLUMNS[aatype, nearest], -1)


def _one_conformer(atoms: _Atoms) -> Bool[np.ndarray, "m"]:
    """Which atoms are of the conformer that is read of each residue.

    The alternative is chosen once for the residue, not for each atom, so that conformers are never
    mixed.
    """
    chosen = atoms.altloc == 0
    some = np.flatnonzero(atoms.altloc)
    conformers, first, conformer = np.unique(
        atoms.place[some] * 256 + atoms.altloc[some], return_index=True, return_inverse=True
    )
    residues = conformers // 256
    occupancy = np.bincount(conformer, weights=atoms.occupancy[some], minlength=len(conformers))
    # In each residue the highest occupancy comes first, and of equals the first in the file.
    order = np.lexsort((first, -occupancy, residues))
    best = order[np.diff(residues[order], prepend=-1) > 0]
    chosen[some] = np.isin(conformer, best)
    return chosen


def _misnamed_arginine(
    sequence: str,
    positions: Float32[np.ndarray, "n 37 3"],
    atom_mask: Bool[np.ndarray, "n 37"],
) -> Bool[np.ndarray, "n"]:
    """Which residues are arginines whose NH2 is closer to CD than NH1 is (AF2 Suppl. 1.2.1)."""
    is_arginine = np.array([letter == "R" for letter in sequence], dtype=bool)
    cd, nh1, nh2 = (positions[:, ATOM37_INDEX[name]] for name in ("CD", "NH1", "NH2"))
    known = atom_mask[:, [ATOM37_INDEX[name] for name in ("CD", "NH1", "NH2")]].all(-1)
    wrong = np.linalg.norm(nh2 - cd, axis=-1) < np.linalg.norm(nh1 - cd, axis=-1)
    return is_arginine & known & wrong
