"""Where a chain's modelled residues stand in its sequence, deposited or not."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice, pairwise

import gemmi
import numpy as np
from jaxtyping import Int32

from esmfold_peft.protein.amino_acids import ALIASES, LETTERS, letter_of
from esmfold_peft.protein.numbering import places
from esmfold_peft.protein.polymers import Polymer, listed

_LEAST_PLACED = 0.9
"""Share of the modelled residues that must have a place in a deposited sequence."""
_MISMATCHES = (-10_000, -2_000)
"""Scores in `_aligned`: gemmi's own, then one that does not turn a mutation into a gap."""


@dataclass(frozen=True)
class Placed:
    """A sequence, its numbers, and the residue of the coordinates at each place that has one."""

    sequence: str
    residue_index: Int32[np.ndarray, "n"]
    residues: dict[int, gemmi.Residue]
    notes: list[str] = field(default_factory=list)


def place_residues(polymer: Polymer, *, modified: bool) -> Placed:
    """The deposited sequence with the residues that fit it, otherwise the modelled sequence."""
    found = _deposited(polymer, modified=modified) if polymer.deposited else None
    if found is None:
        found = _modelled(polymer.residues)
        if polymer.deposited:
            problem = "the modelled residues do not fit the deposited sequence"
            found.notes.append(f"{problem}; the modelled sequence is used")
    if strange := [each for each in found.residues.values() if each.name not in LETTERS]:
        atoms = "with the atoms they have" if modified else "without atoms"
        found.notes.append(f"modified residues are read as X, {atoms}: {_named(strange)}")
    return found


def _deposited(polymer: Polymer, *, modified: bool) -> Placed | None:
    """The deposited sequence, by the file's places or else by alignment; None if it does not fit.

    Residues are aligned where the file states no places (PDB), or places of another sequence; at
    first no residue may contradict the sequence.
    """
    # Atoms tell a force field's name from another molecule of that name; a sequence has no atoms.
    others = {residue.name for residue in polymer.residues if residue.name in ALIASES}
    letters = {
        name: "X" if name in others else letter_of(gemmi.Entity.first_mon(name))
        for name in set(polymer.deposited)
    }
    sequence = "".join(letters[name] for name in polymer.deposited)
    index = np.arange(len(sequence), dtype=np.int32)
    best: tuple[dict[int, gemmi.Residue], list[gemmi.Residue]] | None = None  # placed, and not
    for mismatch in (None, *_MISMATCHES):
        residues = polymer.residues if mismatch is None else _aligned(polymer, mismatch)
        placed, left = _placed(residues, sequence, modified=modified)
        outside = sum(not 1 <= (residue.label_seq or 0) <= len(sequence) for residue in left)
        fits = outside <= (1 - _LEAST_PLACED) * len(residues) and 2 * len(left) <= len(residues)
        fits = fits and not (left and _lacks(residues, placed))
        if fits and (best is None or len(left) < len(best[1])):
            best = placed, left
        if not left or (fits and mismatch is None):  # the file's own places, where they make sense
            break
    if best is None:
        return None
    placed, left = best
    note = f"residues that contradict the deposited sequence are left out: {_named(left)}"
    return Placed(sequence, index, placed, [note] if left else [])


def _lacks(residues: list[gemmi.Residue], placed: dict[int, gemmi.Residue]) -> bool:
    """Whether the sequence lacks residues that stand between two which it has side by side."""
    rows = {id(residue): row for row, residue in enumerate(residues)}
    sides = [(place, rows[id(residue)]) for place, residue in sorted(placed.items())]
    return any(
        place + 1 == next_place
        and row + 1 < next_row
        and residues[row + 1].seqid not in (residues[row].seqid, residues[next_row].seqid)
        for (place, row), (next_place, next_row) in pairwise(sides)
    )


def _named(residues: Iterable[gemmi.Residue]) -> str:
    return listed([f"{residue.name} {residue.seqid}" for residue in residues])


def _placed(
    residues: list[gemmi.Residue], sequence: str, *, modified: bool
) -> tuple[dict[int, gemmi.Residue], list[gemmi.Residue]]:
    """The residues that agree with a sequence by their place in it, and those that do not.

    If `modified`, a modified residue agrees with any letter.
    """
    placed: dict[int, gemmi.Residue] = {}
    left = []
    for residue in residues:
        place = (residue.label_seq or 0) - 1
        letter = LETTERS.get(residue.name, "X")
        fits = 0 <= place < len(sequence)
        fits = fits and (letter == sequence[place] or (modified and letter == "X"))
        if not fits or placed.setdefault(place, residue) is not residue:
            left.append(residue)
    # Of several residues at one position (microheterogeneity) the sequence lists one.
    taken = {residue.seqid for residue in placed.values()}
    return placed, [residue for residue in left if residue.seqid not in taken]


def _aligned(polymer: Polymer, mismatch: int) -> list[gemmi.Residue]:
    """Copies of the residues with the places that an alignment to the deposited sequence finds.

    `mismatch` is the score of two residues of different names; a gap scores -10,000 where the chain
    is unbroken, and 0 where it is broken.
    """
    chain = gemmi.Chain("A")
    for residue in polymer.residues:
        chain.add_residue(residue).label_seq = None
    scoring = gemmi.AlignmentScoring("p")
    scoring.mismatch = mismatch
    names = [gemmi.Entity.first_mon(name).upper() for name in polymer.deposited]
    names = [ALIASES.get(name, name) for name in names]
    kind = gemmi.PolymerType.PeptideL
    found = gemmi.align_sequence_to_polymer(names, chain.whole(), kind, scoring)
    residues, place = iter(chain.whole().first_conformer()), 1
    for length, step in re.findall(r"(\d+)([MID])", found.cigar_str()):
        if step != "I":  # an insertion is in the sequence only
            for offset, residue in enumerate(islice(residues, int(length))):
                residue.label_seq = place + offset if step == "M" else None
        place += 0 if step == "D" else int(length)
    return list(chain)


def _modelled(residues: list[gemmi.Residue]) -> Placed:
    """The sequence of the coordinates, for files that state no other."""
    single = [residues[0]]
    for residue in residues[1:]:
        # Of the alternatives at one position the first is read.
        if residue.seqid != single[-1].seqid or residue[0].altloc == "\0":
            single.append(residue)
    index, hidden = places(single)
    notes = []
    if hidden:
        breaks = listed([f"{single[row - 1].seqid} to {single[row].seqid}" for row in hidden])
        notes.append(f"chain breaks without a gap in the numbering: {breaks}")
    letters = "".join(LETTERS.get(residue.name, "X") for residue in single)
    return Placed(letters, index, dict(enumerate(single)), notes)
