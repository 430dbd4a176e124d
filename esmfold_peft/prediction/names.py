"""File names for records, whatever their headers hold."""

import re
from collections import Counter
from collections.abc import Sequence

LONGEST = 100
"""Most characters of a name, without the ending of the file."""

_NUMBER = 8
"""Characters that are kept free for "-" and a number."""

NAMELESS = "record"
"""The name of a record without one."""
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")
# Windows has devices of these names in every folder, whatever stands after the first dot.
_RESERVED = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9])(\..*)?|predictions|index", re.IGNORECASE)
# Files of a record "x.pae" would look like "x.pae.json" of the record "x".
_ENDING = re.compile(r"\.(pdb|cif|pae|npz|json|csv|html|gz)$", re.IGNORECASE)


def file_names(ids: Sequence[str]) -> list[str]:
    """File names without ending for the ids of records: safe on every file system, and unique.

    ASCII letters, digits, ".", "_" and "-" stay, anything else becomes "_"; no name begins with "."
    or "-", ends in ".", is longer than 100 characters, or is reserved by Windows or by `predict`.
    The first of several names that are equal (case aside) stays as it is; the others get the next
    free number, "-2" at first. Names depend on the order of the ids.
    """
    safe = [_safe(name) for name in ids]
    taken: set[str] = set()
    given = {name.lower() for name in safe}
    numbers: Counter[str] = Counter()  # tried after each stem: a search from 2 would be quadratic
    names = []
    for name in safe:
        if name.lower() in taken:
            name = _numbered(name[: LONGEST - _NUMBER], given, numbers)
        taken.add(name.lower())
        names.append(name)
    return names


def _safe(name: str) -> str:
    name = _UNSAFE.sub("_", name[: 2 * LONGEST]).lstrip(".-")
    if _RESERVED.fullmatch(name.rstrip(".")):
        name = f"_{name}"
    name = name[:LONGEST].rstrip(".") or NAMELESS
    return _ENDING.sub(r"_\1", name)


def _numbered(stem: str, given: set[str], numbers: Counter[str]) -> str:
    """The next free number after a stem; a name that a record has already is not free."""
    key = stem.lower()
    while True:
        numbers[key] += 1
        name = f"{stem}-{numbers[key] + 1}"
        if name.lower() not in given:
            return name
