"""The text of a PDB file before gemmi reads it.

gemmi reads a coordinate that is not a number and a blank occupancy as 0, the fourth letter of a
residue's name as one of the chain's, and two copies of a molecule under one name as one. This
module refuses such lines or corrects them.
"""

import math
import string
from typing import NoReturn

import numpy as np
from jaxtyping import Int64, UInt8

from esmfold_peft.errors import UserError
from esmfold_peft.protein.amino_acids import ALIASES, letter_of

_NAME = slice(17, 21)  # three letters, and a fourth that some programs need
_CHAIN = slice(20, 22)
_RESIDUE = slice(17, 27)
_ATOM = slice(12, 27)
_SEGMENT = slice(72, 76)
_SERIAL = slice(22, 26)
_COORDINATES = slice(30, 54)
_OCCUPANCY = slice(54, 60)
_DIGITS = b" +-.0123456789"
_NUMBER = np.isin(np.arange(256), list(_DIGITS))
_SERIALS = np.isin(np.arange(256), list(f" -+{string.ascii_letters}{string.digits}".encode()))
_CASE = 0x20
_LONGEST = 76


def readable(data: bytes, place: str) -> tuple[bytes, list[str]]:
    """The text in a form that gemmi reads correctly, and notes on atoms that it does not read.

    Raises:
        UserError: the coordinates of an atom are not three numbers, or an amino acid has no number.
    """
    text = np.frombuffer(data, dtype=np.uint8)
    starts = np.concatenate([[0], np.flatnonzero(text == ord("\n")) + 1])
    heads = _heads(text, starts)
    atoms = np.flatnonzero((heads == b"ATOM  ") | (heads == b"HETATM"))
    ends = np.flatnonzero(heads == b"END   ")
    end = int(ends[0]) if len(ends) else len(heads)  # where gemmi stops
    unread = int((atoms > end).sum())
    atoms = atoms[atoms < end]
    lines = _padded(text, starts, atoms)
    _require_coordinates(lines, atoms, place)
    _require_residue_numbers(lines, atoms, place)
    changed = text.copy()
    starts = starts[atoms]
    _fill_occupancies(changed, lines, starts)
    _shorten_names(changed, lines, starts)
    models = np.cumsum(heads == b"MODEL ")[atoms]
    changed = _separate_copies(changed, lines, models, starts)
    note = f"{unread} atoms after the record END on line {end + 1} are not read"
    return changed.tobytes(), [note] if unread else []


def _heads(text: UInt8[np.ndarray, "m"], starts: Int64[np.ndarray, "l"]) -> np.ndarray:
    """The names of records, in capitals, as gemmi reads them."""
    padded = np.concatenate([text, np.full(6, ord(" "), dtype=np.uint8)])
    heads = padded[starts[:, None] + np.arange(6)]
    heads[np.logical_or.accumulate(heads < ord(" "), axis=1)] = ord(" ")
    heads[(heads >= ord("a")) & (heads <= ord("z"))] -= _CASE
    return heads.view("S6")[:, 0]


def _padded(
    text: UInt8[np.ndarray, "m"], starts: Int64[np.ndarray, "l"], atoms: Int64[np.ndarray, "a"]
) -> UInt8[np.ndarray, "a 76"]:
    """The first 76 columns of lines, with 0 behind their ends."""
    padded = np.concatenate([text, np.full(_LONGEST, ord("\n"), dtype=np.uint8)])
    lines = padded[starts[atoms][:, None] + np.arange(_LONGEST)]
    lines[np.logical_or.accumulate(lines == ord("\n"), axis=1)] = 0
    lines[lines == ord("\r")] = 0
    return lines


def _require_coordinates(
    lines: UInt8[np.ndarray, "a 76"], atoms: Int64[np.ndarray, "a"], place: str
) -> None:
    columns = np.ascontiguousarray(lines[:, _COORDINATES])
    fields = columns.reshape(-1, 3, 8).view("S8")[..., 0]
    doubtful = np.flatnonzero(~_NUMBER[columns].all(-1))
    try:
        np.delete(fields, doubtful, axis=0).astype(np.float64)
    except ValueError:
        doubtful = np.arange(len(fields))
    # If z is a column too far to the right, its last digit is where the occupancy begins.
    digit = (lines[:, 54] >= ord("0")) & (lines[:, 54] <= ord("9"))
    points = columns.reshape(-1, 3, 8) == ord(".")
    shifted = digit & (points[:, 2].argmax(-1) != points[:, 1].argmax(-1))
    for row in np.union1d(doubtful, np.flatnonzero(shifted)):
        if shifted[row] or not all(map(_is_number, fields[row])):
            shown = lines[row, 30 : 60 if shifted[row] else 54].tobytes().replace(b"\0", b"")
            fault = "x, y and z in columns 31 to 54 are not three numbers, but"
            _refuse(
                place, int(atoms[row]), f'{fault} "{shown.decode("ascii", "replace").rstrip()}"'
            )


def _require_residue_numbers(
    lines: UInt8[np.ndarray, "a 76"], atoms: Int64[np.ndarray, "a"], place: str
) -> None:
    """Refuses amino acids without a number, which gemmi would join; water may lack numbers."""
    serials = lines[:, _SERIAL]
    bad = ~_SERIALS[serials].all(-1) | (serials == ord(" ")).all(-1)
    for row in np.flatnonzero(bad):
        name = lines[row, 17:20].tobytes().decode("ascii", "replace").strip()
        if letter_of(name) != "X":
            _refuse(place, int(atoms[row]), "no residue number in columns 23 to 26")


def _refuse(place: str, line: int, fault: str) -> NoReturn:
    raise UserError(f"{place}: not a valid coordinate file (line {line + 1}: {fault})")


def _is_number(field: bytes) -> bool:
    """Whether gemmi reads a field correctly; programs write nan for an unknown place."""
    try:
        value = float(field)
    except ValueError:
        return False
    return math.isnan(value) or set(field) <= set(_DIGITS)


def _fill_occupancies(
    text: UInt8[np.ndarray, "m"], lines: UInt8[np.ndarray, "a 76"], starts: Int64[np.ndarray, "a"]
) -> None:
    """Writes 1.00 where the occupancy has no digit, up to the end of the line."""
    columns = lines[:, _OCCUPANCY]
    missing = ~np.any((columns >= ord("0")) & (columns <= ord("9")), axis=-1)
    rows, places = np.nonzero(missing[:, None] & (columns != 0))
    text[starts[rows] + _OCCUPANCY.start + places] = np.frombuffer(b"  1.00", np.uint8)[places]


def _shorten_names(
    text: UInt8[np.ndarray, "m"], lines: UInt8[np.ndarray, "a 76"], starts: Int64[np.ndarray, "a"]
) -> None:
    """Replaces a force field's name of four letters by the amino acid's.

    The fourth is in the first of two columns that gemmi reads as the chain's name. It belongs to
    the chain if the same two columns also follow a name that is not a force field's.
    """
    names, chains = (_texts(lines, columns) for columns in (_NAME, _CHAIN))
    longer = {
        name: ALIASES.get(name.decode("ascii", "replace").upper())
        for name in np.unique(names[lines[:, _CHAIN.start] > ord(" ")])
    }
    of_chains = np.isin(names, [name for name, parent in longer.items() if parent is None])
    free = ~np.isin(chains, chains[of_chains])
    for name, parent in longer.items():
        if parent is not None:
            where = starts[(names == name) & free][:, None] + np.arange(_NAME.start, _NAME.stop)
            text[where] = np.frombuffer(f"{parent} ".encode(), dtype=np.uint8)


def _separate_copies(
    text: UInt8[np.ndarray, "m"],
    lines: UInt8[np.ndarray, "a 76"],
    models: Int64[np.ndarray, "a"],
    starts: Int64[np.ndarray, "a"],
) -> UInt8[np.ndarray, "k"]:
    """Writes TER before a second copy of the same residues, whose atoms gemmi would mix."""
    keys = np.concatenate(
        [lines[:, _ATOM], lines[:, _SEGMENT], models.astype("<u4").view(np.uint8).reshape(-1, 4)], 1
    )
    _, atom, counts = np.unique(
        np.ascontiguousarray(keys).view(f"V{keys.shape[1]}")[:, 0],
        return_inverse=True,
        return_counts=True,
    )
    if counts.max(initial=0) < 2:
        return text
    order = np.argsort(atom, kind="stable")
    copy = np.empty(len(atom), dtype=np.int64)
    copy[order] = np.arange(len(atom)) - np.repeat(np.cumsum(counts) - counts, counts)
    residues = _texts(lines, _RESIDUE)
    begins = (np.diff(copy, prepend=0) > 0) & (residues != np.roll(residues, 1))
    return np.insert(text, np.repeat(starts[begins], 4), np.tile(list(b"TER\n"), begins.sum()))


def _texts(lines: UInt8[np.ndarray, "a 76"], columns: slice) -> np.ndarray:
    """Some columns of each line as one text."""
    width = columns.stop - columns.start
    return np.ascontiguousarray(lines[:, columns]).view(f"S{width}")[:, 0]
