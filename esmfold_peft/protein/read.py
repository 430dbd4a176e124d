"""Reading protein chains from mmCIF and PDB files.

What is kept of a file: the first model; in each residue the atoms without an alternative location
and those of the alternative with the highest summed occupancy (the first of equals); where a
position of the sequence holds several residues (microheterogeneity), the one that the sequence
lists first. Atoms of occupancy 0 or without finite coordinates are not resolved and are dropped, as
are hydrogens and atoms foreign to their residue. MSE is read as MET, its selenium as SD; every
other residue outside the standard twenty is X and has no atoms. NH1 and NH2 of arginine are
exchanged where NH2 is the one closer to CD.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import gemmi
import numpy as np
from jaxtyping import Bool, Float32, Int32

from esmfold_peft.errors import UserError
from esmfold_peft.protein.entry import Entry, open_entry
from esmfold_peft.protein.residues import (
    AATYPE,
    ATOM14,
    ATOM37,
    ATOM37_INDEX,
    RESIDUES,
    THREE_TO_ONE,
)
from esmfold_peft.protein.structure import ProteinStructure

_PDB_CODE = re.compile(r"[0-9][a-z0-9]{3}|pdb_[0-9a-z]{8}", re.IGNORECASE)
_LETTERS = {three: one for three, one in THREE_TO_ONE.items() if one in AATYPE} | {"MSE": "M"}
_COLUMNS = {
    letter: {name: ATOM37_INDEX[name] for name in (*ATOM14[letter], "OXT")} for letter in RESIDUES
} | {"X": {}}
_COLUMNS["M"]["SE"] = ATOM37_INDEX["SD"]
_NH_EXCHANGED = np.arange(len(ATOM37))
_NH_EXCHANGED[[ATOM37_INDEX["NH1"], ATOM37_INDEX["NH2"]]] = ATOM37_INDEX["NH2"], ATOM37_INDEX["NH1"]


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
    entry = open_entry(path)
    spans = _protein_spans(entry)
    return [_chain(entry, author, span, alone=len(spans) == 1) for author, span in spans]


def _protein_spans(entry: Entry) -> list[tuple[str, gemmi.ResidueSpan]]:
    """The author's name and the residues of every protein in the first model."""
    spans = []
    for chain in entry.structure[0]:
        for span in chain.subchains():
            entity = entry.structure.get_entity_of(span)
            if entity is not None and entity.polymer_type == gemmi.PolymerType.PeptideL:
                spans.append((chain.name, span))
    if not spans:
        raise UserError(f"{entry.path}: no protein chain")
    return spans


def _chain(entry: Entry, author: str, span: gemmi.ResidueSpan, *, alone: bool) -> ProteinStructure:
    deposited = entry.structure.get_entity_of(span).full_sequence
    found = _aligned(deposited, span) if deposited else _modelled(span)
    names = [""] * len(found.sequence)
    for place, residue in found.residues.items():
        names[place] = str(residue.seqid)
    positions, atom_mask, b_factors = _atoms(found)
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
        place = residue.label_seq - 1 if residue.label_seq is not None else len(sequence)
        if place < len(sequence) and _LETTERS.get(residue.name, "X") == sequence[place]:
            residues.setdefault(place, residue)
    return _Found(sequence, np.arange(len(sequence), dtype=np.int32), residues)


def _modelled(span: gemmi.ResidueSpan) -> _Found:
    """The sequence of the coordinates, for files that state no other."""
    residues = list(span.first_conformer())
    index = np.arange(len(residues), dtype=np.int32)
    labels = [residue.label_seq or 0 for residue in residues]
    authors = [residue.seqid.num or 0 for residue in residues]
    for numbers, first in ((labels, 1), (authors, authors[0])):
        if numbers[0] >= first and all(a < b for a, b in pairwise(numbers)):
            index = np.array(numbers, dtype=np.int32) - np.int32(first)
            break
    return _Found(_letters(r.name for r in residues), index, dict(enumerate(residues)))


def _letters(names: Iterable[str]) -> str:
    return "".join(_LETTERS.get(name, "X") for name in names)


def _atoms(
    found: _Found,
) -> tuple[Float32[np.ndarray, "n 37 3"], Bool[np.ndarray, "n 37"], Float32[np.ndarray, "n 37"]]:
    """Positions, mask and B-factors."""
    n = len(found.sequence)
    # The one loop over atoms in Python; everything numerical is done at once afterwards.
    slots, values = [], []
    for place, residue in found.residues.items():
        columns = _COLUMNS[found.sequence[place]]
        for atom in _conformer(residue):
            column = columns.get(atom.name)
            if column is not None:
                slots.append(place * len(ATOM37) + column)
                values.append((*atom.pos.tolist(), atom.b_iso))
    table = np.zeros((n * len(ATOM37), 4), dtype=np.float32)
    mask = np.zeros(n * len(ATOM37), dtype=bool)
    # Reversed: of atoms that a file lists twice, the first is the one that stays.
    table[slots[::-1]] = np.array(values, dtype=np.float32).reshape(-1, 4)[::-1]
    mask[slots] = True
    table = table.reshape(n, len(ATOM37), 4)
    return table[..., :3].copy(), mask.reshape(n, len(ATOM37)), table[..., 3].copy()


def _conformer(residue: gemmi.Residue) -> list[gemmi.Atom]:
    """The resolved atoms of one conformer.

    The alternative is chosen once for the residue, not for each atom, so that conformers are never
    mixed.
    """
    atoms = [atom for atom in residue if atom.occ > 0 and math.isfinite(atom.pos.x)]
    occupancy: dict[str, float] = defaultdict(float)
    for atom in atoms:
        if atom.has_altloc():
            occupancy[atom.altloc] += atom.occ
    if not occupancy:
        return atoms
    best = max(occupancy, key=occupancy.__getitem__)
    return [atom for atom in atoms if not atom.has_altloc() or atom.altloc == best]


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
