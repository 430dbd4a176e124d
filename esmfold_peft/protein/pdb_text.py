"""The text of a PDB file before gemmi reads it.

gemmi takes what is no number for 0, a blank occupancy for 0, and the fourth letter of a residue's
name for one of the chain's. Here such lines are refused or put right.
"""

import math

import numpy as np
from jaxtyping import Int64, UInt8

from esmfold_peft.errors import UserError
from esmfold_peft.protein.amino_acids import ALIASES

_NAME = slice(17, 21)  # three letters, and a fourth that some programs need
_COORDINATES = slice(30, 54)
_OCCUPANCY = slice(54, 60)
_DIGITS = b" +-.0123456789"
_NUMBER = np.zeros(256, dtype=bool)
_NUMBER[list(_DIGITS)] = True
_CASE = 0x20
_LONGEST = 60


def readable(data: bytes, place: str) -> tuple[bytes, list[str]]:
    """A PDB file as gemmi reads it rightly, and what is to be known of it.

    Args:
        data: the content.
        place: of the file, for the message.

    Raises:
        UserError: the coordinates of an atom are not three numbers.
    """
    text = np.frombuffer(data, dtype=np.uint8)
    starts = np.concatenate([[0], np.flatnonzero(text == ord("\n")) + 1])
    heads = _heads(text, starts)
    atoms = np.flatnonzero((heads == b"ATOM  ") | (heads == b"HETATM"))
    ends = np.flatnonzero(heads == b"END   ")
    unread = len(atoms)
    if len(ends):  # where gemmi stops
        atoms = atoms[atoms < ends[0]]
    unread -= len(atoms)
    lines = _padded(text, starts, atoms)
    _require_coordinates(lines, atoms, place)
    changed = text.copy()
    _fill_occupancies(changed, lines, starts[atoms])
    _shorten_names(changed, lines, starts[atoms])
    where = f"after the record END on line {ends[0] + 1}" if unread else ""
    return changed.tobytes(), [f"{unread} atoms {where} are not read"] if unread else []


def _heads(text: UInt8[np.ndarray, "m"], starts: Int64[np.ndarray, "l"]) -> np.ndarray:
    """The names of records, in capitals, as gemmi takes them."""
    padded = np.concatenate([text, np.full(6, ord(" "), dtype=np.uint8)])
    heads = padded[starts[:, None] + np.arange(6)]
    heads[np.logical_or.accumulate(heads < ord(" "), axis=1)] = ord(" ")
    heads[(heads >= ord("a")) & (heads <= ord("z"))] -= _CASE
    return heads.view("S6")[:, 0]


def _padded(
    text: UInt8[np.ndarray, "m"], starts: Int64[np.ndarray, "l"], atoms: Int64[np.ndarray, "a"]
) -> UInt8[np.ndarray, "a 60"]:
    """The first 60 columns of lines, with 0 behind their ends."""
    padded = np.concatenate([text, np.full(_LONGEST, ord("\n"), dtype=np.uint8)])
    lines = padded[starts[atoms][:, None] + np.arange(_LONGEST)]
    lines[np.logical_or.accumulate(lines == ord("\n"), axis=1)] = 0
    lines[lines == ord("\r")] = 0
    return lines


def _require_coordinates(
    lines: UInt8[np.ndarray, "a 60"], atoms: Int64[np.ndarray, "a"], place: str
) -> None:
    columns = np.ascontiguousarray(lines[:, _COORDINATES])
    fields = columns.reshape(-1, 3, 8).view("S8")[..., 0]
    doubtful = np.flatnonzero(~_NUMBER[columns].all(-1))
    try:
        np.delete(fields, doubtful, axis=0).astype(np.float64)
    except ValueError:
        doubtful = np.arange(len(fields))
    for row in doubtful:
        if not all(map(_is_number, fields[row])):
            shown = columns[row].tobytes().replace(b"\0", b"").decode("ascii", "replace")
            raise UserError(
                f"{place}: not a valid coordinate file (line {atoms[row] + 1}: x, y and z in"
                f' columns 31 to 54 are not three numbers, but "{shown}")'
            )


def _is_number(field: bytes) -> bool:
    """Whether gemmi reads a field as it is meant; nan is how programs write an unknown place."""
    try:
        value = float(field)
    except ValueError:
        return False
    return math.isnan(value) or set(field) <= set(_DIGITS)


def _fill_occupancies(
    text: UInt8[np.ndarray, "m"], lines: UInt8[np.ndarray, "a 60"], starts: Int64[np.ndarray, "a"]
) -> None:
    """Writes 1.00 where the occupancy has no digit; gemmi fills it in where the line is shorter."""
    columns = lines[:, _OCCUPANCY]
    digits = (columns >= ord("0")) & (columns <= ord("9"))
    missing = ~digits.any(-1) & (columns != 0).all(-1)
    where = starts[missing][:, None] + np.arange(_OCCUPANCY.start, _OCCUPANCY.stop)
    text[where] = np.frombuffer(b"  1.00", dtype=np.uint8)


def _shorten_names(
    text: UInt8[np.ndarray, "m"], lines: UInt8[np.ndarray, "a 60"], starts: Int64[np.ndarray, "a"]
) -> None:
    """Writes the amino acid's name where a force field's has four letters.

    The fourth is in the first of two columns that gemmi reads as the chain's name. If all atoms
    have something there, it is the name of a chain.
    """
    names = np.ascontiguousarray(lines[:, _NAME]).view("S4")[:, 0]
    if not len(lines) or (lines[:, _NAME.stop - 1] > ord(" ")).all():
        return
    for name in np.unique(names):
        parent = ALIASES.get(name.decode("ascii", "replace").upper())
        if parent is not None and len(name) == 4 and b" " not in name:
            where = starts[names == name][:, None] + np.arange(_NAME.start, _NAME.stop)
            text[where] = np.frombuffer(f"{parent} ".encode(), dtype=np.uint8)
