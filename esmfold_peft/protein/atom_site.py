"""The table of atoms of an mmCIF file before gemmi makes a structure of it.

gemmi finds no atoms if certain columns are missing, and reads a coordinate that is not a number as
unknown. This module fills in columns that follow from others, and refuses such coordinates.
"""

from collections import Counter
from collections.abc import Iterator

import gemmi
import numpy as np

from esmfold_peft.errors import UserError

_PREFIX = "_atom_site."
_XYZ = ("Cartn_x", "Cartn_y", "Cartn_z")
_UNKNOWN = ("?", ".")
_NO_PLACE = (*_UNKNOWN, "nan", "NaN", "NAN")
"""Values of an unknown coordinate."""


def is_atom_table(block: gemmi.cif.Block) -> bool:
    """Whether a block has atoms."""
    loop = _loop(block)
    return loop is not None and loop.length() > 0


def complete(block: gemmi.cif.Block, place: str) -> dict[str, str]:
    """Adds to a block the columns that gemmi needs and other readers do not.

    Returns the author's names of chains that now have another name in the table, since gemmi would
    mix residues of several molecules under one name.

    Raises:
        UserError: a column is missing that no other can replace.
    """
    loop = _loop(block)
    assert loop is not None
    has = {tag.lower().removeprefix(_PREFIX) for tag in loop.tags}
    either = ((f"label_{name}", f"auth_{name}") for name in ("comp_id", "atom_id", "seq_id"))
    for names in (*((name,) for name in _XYZ), *either):
        if has.isdisjoint(name.lower() for name in names):
            wanted = " or ".join(_PREFIX + name for name in names)
            raise UserError(f"{place}: the table of atoms has no column {wanted}")
    numbers = [_column(block, name) for name in ("label_seq_id", "auth_seq_id") if name in has]
    if all(column[0] in _UNKNOWN and set(column) <= set(_UNKNOWN) for column in numbers):
        raise UserError(f"{place}: no atom has a label_seq_id or auth_seq_id")
    loop.add_columns([_PREFIX + n for n in ("label_alt_id", "type_symbol") if n not in has], ".")
    if "id" not in has:
        loop.add_columns([_PREFIX + "id"], "0")
        _fill(block, "id", [str(row) for row in range(1, loop.length() + 1)])
    _name_chains(block, loop, has)
    return _separate_molecules(block, loop, has)


def require_numbers(
    block: gemmi.cif.Block, structure: gemmi.Structure, text: bytes, place: str
) -> None:
    """Refuses coordinates that are neither a number nor marked as unknown.

    Args:
        block: of the file.
        structure: gemmi's, of the block.
        text: of the file, to find the line.
        place: of the file, for the message.
    """
    # One coordinate that is not a number makes the centre NaN.
    centres = [model.calculate_center_of_mass().tolist() for model in structure]
    if np.isfinite(centres).all():
        return
    ids = _column(block, "id")
    for name in _XYZ:
        for atom, value in zip(ids, _column(block, name), strict=True):
            if value not in _NO_PLACE and not np.isfinite(gemmi.cif.as_number(value)):
                line = _line(block, text, atom, value)
                fault = f"{line}{name} of atom {atom} is not a number, but {value[:40]}"
                raise UserError(f"{place}: not a valid coordinate file ({fault})")


def _loop(block: gemmi.cif.Block) -> gemmi.cif.Loop | None:
    loops = (block.find_loop(_PREFIX + name).get_loop() for name in ("id", *_XYZ))
    return next((loop for loop in loops if loop is not None), None)


def _column(block: gemmi.cif.Block, name: str) -> gemmi.cif.Column:
    return block.find_loop(_PREFIX + name)


def _fill(block: gemmi.cif.Block, name: str, values: list[str]) -> None:
    column = _column(block, name)
    for row, value in enumerate(values):
        column[row] = value


def _name_chains(block: gemmi.cif.Block, loop: gemmi.cif.Loop, has: set[str]) -> None:
    """Gives atoms without a label of their chain the author's name for it."""
    if "label_asym_id" not in has:
        loop.add_columns([_PREFIX + "label_asym_id"], "?")
    labels = list(_column(block, "label_asym_id"))
    if set(labels).isdisjoint(_UNKNOWN):
        return
    authors = list(_column(block, "auth_asym_id")) if "auth_asym_id" in has else ["A"] * len(labels)
    authors = ["A" if author in _UNKNOWN else author for author in authors]
    both = zip(labels, authors, strict=True)
    _fill(block, "label_asym_id", [author if one in _UNKNOWN else one for one, author in both])


def _separate_molecules(
    block: gemmi.cif.Block, loop: gemmi.cif.Loop, has: set[str]
) -> dict[str, str]:
    """Gives each molecule a name of its own where several polymers have one author's name."""
    labels = list(_column(block, "label_asym_id"))
    stated = bool(block.find_loop("_entity_poly_seq.mon_id"))
    if stated and len(set(labels)) == 1:
        return {}
    authors = list(_column(block, "auth_asym_id")) if "auth_asym_id" in has else labels
    groups = _column(block, "group_PDB") if "group_pdb" in has else ["ATOM"] * len(labels)
    # Programs that state sequences give copies of a molecule labels of their own.
    copies = ["0"] * len(labels) if stated else _copies(block, has)
    found = set(zip(groups, authors, labels, copies, strict=True))
    polymers = {tuple(names) for group, *names in found if group.upper() == "ATOM"}
    if len({author for author, *_ in polymers}) == len(polymers):
        return {}
    if "auth_asym_id" not in has:
        loop.add_columns([_PREFIX + "auth_asym_id"], "A")
    names = {tuple(key): " ".join(map(gemmi.cif.as_string, key)) for _, *key in found}
    keys = zip(authors, labels, copies, strict=True)
    _fill(block, "auth_asym_id", [gemmi.cif.quote(names[key]) for key in keys])
    return {name: gemmi.cif.as_string(key[0]) for key, name in names.items()}


def _copies(block: gemmi.cif.Block, has: set[str]) -> list[str]:
    """For each atom, how many residues before its own have the same names and numbers."""

    def rows(tags: str) -> Iterator[tuple[str, ...]]:
        return zip(*(_column(block, t) for t in tags.split() if t.lower() in has), strict=True)

    residues = rows(
        "auth_asym_id label_asym_id pdbx_PDB_model_num label_seq_id auth_seq_id pdbx_PDB_ins_code"
        " label_comp_id auth_comp_id"
    )
    seen: Counter[tuple] = Counter()
    copies, copy, last = [], 0, None
    atoms = rows("label_atom_id auth_atom_id label_alt_id")
    for residue, atom in zip(residues, atoms, strict=False):
        key = residue + atom
        if residue != last:
            copy, last = seen[key], residue
        seen[key] += 1
        copies.append(str(copy))
    return copies


def _line(block: gemmi.cif.Block, text: bytes, atom: str, value: str) -> str:
    """The line of an atom as "line 5: "; "" where none has both its id and the value."""
    loop = _loop(block)
    first = next(item.line_number for item in block if item.loop is loop)
    wanted = {atom.encode(errors="replace"), value.encode(errors="replace")}
    for number, line in enumerate(text.split(b"\n")[first:], start=first + 1):
        if wanted <= set(line.split()):
            return f"line {number}: "
    return ""
