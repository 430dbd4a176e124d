"""Reading protein chains from mmCIF and PDB files.

What is kept of a file: the first model; in each residue the atoms without an alternative location
and those of the alternative with the highest summed occupancy (the first of equals); where a
position of the sequence holds several residues (microheterogeneity), the one that the sequence
lists first. Atoms of occupancy 0 (unless they are wanted) or without coordinates (or with one
beyond a million Å) are not resolved and are dropped, as are hydrogens and atoms foreign to their
residue. MSE is read as MET, its selenium as SD; every other residue outside the standard twenty is
X and has no atoms. NH1 and NH2 of arginine are exchanged where NH2 is the one closer to CD.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Literal

import gemmi
import numpy as np
from jaxtyping import Bool, Float32, Int8, Int32, Int64, UInt8

from esmfold_peft.errors import UserError
from esmfold_peft.protein.entry import Entry, open_entry, parse_entry, refusing_damage
from esmfold_peft.protein.files import decompressed
from esmfold_peft.protein.residues import (
    AATYPE,
    ATOM14,
    ATOM37,
    ATOM37_INDEX,
    RESIDUES,
    RESIDUES_X,
    THREE_TO_ONE,
    encode,
)
from esmfold_peft.protein.structure import ProteinStructure

_PDB_CODE = re.compile(r"[0-9][a-z0-9]{3}|pdb_[0-9a-z]{8}", re.IGNORECASE)
_LETTERS = {three: one for three, one in THREE_TO_ONE.items() if one in AATYPE} | {"MSE": "M"}
# Atom names as gemmi gives them in arrays: eight bytes each, here taken as one number.
_NAMES = np.array([*ATOM37, "SE"], dtype="S8")
_NAMES = _NAMES[np.argsort(_NAMES.view(np.uint64))]
_KEYS = _NAMES.view(np.uint64)


def _column_table() -> Int64[np.ndarray, "21 names"]:
    """Column of atom37 for each residue and name; -1 where the residue has no such atom."""
    table = np.full((len(RESIDUES_X), len(_NAMES)), -1, dtype=np.int64)
    for letter in RESIDUES:
        for column, name in enumerate(_NAMES.astype(str)):
            if name in (*ATOM14[letter], "OXT"):
                table[AATYPE[letter], column] = ATOM37_INDEX[name]
    table[AATYPE["M"], _NAMES == b"SE"] = ATOM37_INDEX["SD"]
    return table


_COLUMNS = _column_table()
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

    The sequence is the deposited one (entity_poly_seq, SEQRES), unresolved residues included; a
    file without one gives the residues in its coordinates. Residues are numbered by label_seq_id;
    where a file has neither sequence nor label_seq_id, by the author's numbers if these increase
    throughout, so that a gap in them remains a gap, and otherwise one after the other.

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
        spans = _protein_spans(entry)
        if chain is None:
            return _chain(entry, *spans[0], alone=len(spans) == 1)
        names = [author if by == "author" else span.subchain_id() for author, span in spans]
        if chain not in names:
            present = ", ".join(names)
            raise UserError(f'{path}: no protein chain "{chain}" (the file has {present})')
        return _chain(entry, *spans[names.index(chain)], alone=len(spans) == 1)


def read_chains(path: Path) -> list[ProteinStructure]:
    """Reads every protein chain of an mmCIF or PDB file as `read_structure` does, in its order.

    Chains without a single known atom (unknown residues only) are returned too.

    Raises:
        UserError: the file cannot be read, or has no coordinates or no protein chain.
    """
    return _chains(open_entry(path))


def parse_chains(data: bytes, place: str, *, occupied: bool = True) -> list[ProteinStructure]:
    """Reads every protein chain from the content of an mmCIF or PDB file, as `read_chains` does.

    Args:
        data: the content, plain or gzip-compressed.
        place: what messages name: a path, or a member of an archive
            ("folder/shard.tar/1abc_A.cif.gz"). Its last component without endings is the entry's
            name where the file states none.
        occupied: whether atoms of occupancy 0 are dropped. In an experiment they were not seen; a
            model has seen none, and what it writes there means nothing.

    Raises:
        UserError: the content is empty, damaged, neither mmCIF nor PDB, or has no coordinates or
            no protein chain.
    """
    return parse_models(data, place, occupied=occupied)[0]


def parse_models(
    data: bytes, place: str, *, occupied: bool = True
) -> tuple[list[ProteinStructure], int]:
    """Reads the chains of the first model as `parse_chains` does, and counts the models.

    Args:
        data: see `parse_chains`.
        place: see `parse_chains`.
        occupied: see `parse_chains`.

    Raises:
        UserError: as `parse_chains`.
    """
    entry = parse_entry(decompressed(data, place), place)
    return _chains(entry, occupied=occupied), len(entry.structure)


def _chains(entry: Entry, *, occupied: bool = True) -> list[ProteinStructure]:
    with refusing_damage(entry.place):
        spans = _protein_spans(entry)
        alone = len(spans) == 1
        return [_chain(entry, *span, alone=alone, occupied=occupied) for span in spans]


def _protein_spans(entry: Entry) -> list[tuple[str, gemmi.ResidueSpan]]:
    """The author's name and the residues of every protein in the first model."""
    spans = []
    for chain in entry.structure[0]:
        for span in chain.subchains():
            entity = entry.structure.get_entity_of(span)
            if entity is not None and entity.polymer_type == gemmi.PolymerType.PeptideL:
                if not (chain.name + span.subchain_id()).isprintable():
                    raise UserError(f"{entry.place}: chain name {chain.name!r} is not printable")
                spans.append((chain.name, span))
    if not spans:
        raise NoProteinError(f"{entry.place}: no protein chain")
    return spans


def _chain(
    entry: Entry, author: str, span: gemmi.ResidueSpan, *, alone: bool, occupied: bool = True
) -> ProteinStructure:
    deposited = entry.structure.get_entity_of(span).full_sequence
    found = _aligned(deposited, span) if deposited else _modelled(span)
    names = [""] * len(found.sequence)
    for place, residue in found.residues.items():
        names[place] = str(residue.seqid)
    positions, atom_mask, b_factors = _atoms(found, occupied=occupied)
    swapped = _misnamed_arginine(found.sequence, positions, atom_mask)
    for array in (positions, b_factors):
        array[swapped] = array[swapped][:, _NH_EXCHANGED]
    return ProteinStructure(
        id=_name(entry.name, author, alone=alone),
        sequence=found.sequence,
        residue_index=found.residue_index,
        residue_names=tuple(names),
        positions=positions,
        atom_mask=atom_mask,
        b_factors=b_factors,
        chain=author,
        resolution=entry.resolution,
        method=entry.method,
        release_date=entry.release_date,
        # Not the name of gemmi's entity: it merges equal ones, and invents those of a PDB file.
        entity=span[0].entity_id or None,
    )


def _name(entry: str, author: str, *, alone: bool) -> str:
    if _PDB_CODE.fullmatch(entry):
        return f"{entry.lower()}_{author}"
    return entry if alone else f"{entry}_{author}"


@dataclass(frozen=True)
class _Found:
    """A sequence, its numbers, and the residue of the coordinates at each place that has one."""

    sequence: str
    residue_index: Int32[np.ndarray, "n"]
    residues: dict[int, gemmi.Residue]


def _aligned(deposited: list[str], span: gemmi.ResidueSpan) -> _Found:
    """The deposited sequence and the residues that agree with it."""
    sequence = _letters(map(gemmi.Entity.first_mon, deposited))
    residues: dict[int, gemmi.Residue] = {}
    for residue in span:
        place = (residue.label_seq or 0) - 1
        if 0 <= place < len(sequence) and _LETTERS.get(residue.name, "X") == sequence[place]:
            residues.setdefault(place, residue)
    return _Found(sequence, np.arange(len(sequence), dtype=np.int32), residues)


def _modelled(span: gemmi.ResidueSpan) -> _Found:
    """The sequence of the coordinates, for files that state no other."""
    residues = list(span.first_conformer())
    index = np.arange(len(residues), dtype=np.int32)
    labels = [residue.label_seq or 0 for residue in residues]
    authors = [residue.seqid.num or 0 for residue in residues]
    for numbers, first in ((labels, 1), (authors, authors[0])):
        fits = numbers[0] >= first and numbers[-1] - first <= np.iinfo(np.int32).max
        if fits and all(a < b for a, b in pairwise(numbers)):
            index = np.array([number - first for number in numbers], dtype=np.int32)
            break
    return _Found(_letters(r.name for r in residues), index, dict(enumerate(residues)))


def _letters(names: Iterable[str]) -> str:
    return "".join(_LETTERS.get(name, "X") for name in names)


def _atoms(
    found: _Found, *, occupied: bool
) -> tuple[Float32[np.ndarray, "n 37 3"], Bool[np.ndarray, "n 37"], Float32[np.ndarray, "n 37"]]:
    """Positions, mask and B-factors."""
    n = len(found.sequence)
    atoms = _listed(found)
    seen = atoms.occupancy > 0 if occupied else np.ones(len(atoms.place), dtype=bool)
    atoms = atoms[seen & (np.abs(atoms.position) < _FARTHEST).all(-1)]
    atoms = atoms[_one_conformer(atoms)]
    atoms = atoms[atoms.column >= 0]
    # Reversed: of atoms that a file lists twice, the first is the one that stays.
    slots = (atoms.place * len(ATOM37) + atoms.column)[::-1]
    positions = np.zeros((n * len(ATOM37), 3), dtype=np.float32)
    mask = np.zeros(n * len(ATOM37), dtype=bool)
    b_factors = np.zeros(n * len(ATOM37), dtype=np.float32)
    positions[slots] = atoms.position[::-1]
    mask[slots] = True
    b_factors[slots] = atoms.b_factor[::-1]
    shape = (n, len(ATOM37))
    return positions.reshape(*shape, 3), mask.reshape(shape), b_factors.reshape(shape)


@dataclass(frozen=True)
class _Atoms:
    """The atoms of a chain's known residues in the order of the file.

    Attributes:
        place: of the residue in the sequence.
        column: in atom37; -1 for an atom foreign to its residue.
        altloc: character code of the alternative location; 0 without one.
    """

    place: Int64[np.ndarray, "m"]
    column: Int64[np.ndarray, "m"]
    altloc: UInt8[np.ndarray, "m"]
    occupancy: Float32[np.ndarray, "m"]
    position: Float32[np.ndarray, "m 3"]
    b_factor: Float32[np.ndarray, "m"]

    def __getitem__(self, which: Bool[np.ndarray, "m"]) -> "_Atoms":
        if which.all():
            return self
        return _Atoms(**{field.name: getattr(self, field.name)[which] for field in fields(self)})


def _listed(found: _Found) -> _Atoms:
    """The atoms as gemmi has them.

    A loop over atoms in Python is most of the time of reading a file; gemmi makes arrays of them,
    but of whole structures only, hence one with nothing but the residues wanted.
    """
    chain = gemmi.Chain("A")
    places = [place for place in found.residues if found.sequence[place] != "X"]
    for place in places:
        residue = chain.add_residue(found.residues[place])
        residue.subchain = residue.entity_id = ""  # they may be longer than FlatStructure takes
    structure = gemmi.Structure()
    structure.add_model(gemmi.Model(1)).add_chain(chain)
    flat = gemmi.FlatStructure(structure)
    place = np.repeat(np.array(places, dtype=np.int64), [len(residue) for residue in chain])
    with np.errstate(over="ignore"):  # what is too far for float32 is dropped later
        position = flat.pos.astype(np.float32)
    return _Atoms(
        place=place,
        column=_columns(encode(found.sequence)[place], np.asarray(flat.atom_names)),
        altloc=flat.altlocs.astype(np.uint8),
        occupancy=flat.occ.copy(),
        position=position,
        b_factor=np.nan_to_num(flat.b_iso, posinf=0.0, neginf=0.0),
    )


def _columns(
    aatype: Int64[np.ndarray, "m"], names: Int8[np.ndarray, "m 8"]
) -> Int64[np.ndarray, "m"]:
    """Columns of atoms in atom37, -1 for one foreign to its residue."""
    keys = np.ascontiguousarray(names).view(_KEYS.dtype)[:, 0]
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
