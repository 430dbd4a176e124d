"""File names for records, whatever their headers hold."""

import re
from collections import Counter
from collections.abc import Sequence

LONGEST = 100
"""Most characters of a name, without the ending of the file."""

_NUMBER = 8
"""Characters that are kept free for "-" and a number."""

NAMELESS = "record"
"""What a record without a name is called."""
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")
# Windows has devices of these names in every folder, whatever stands after the first dot.
_RESERVED = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9])(\..*)?|predictions|index", re.IGNORECASE)
# "x.pae" beside "x" would be one ending away from the file "x.pae.json".
_ENDING = re.compile(r"\.(pdb|cif|pae|npz|json|csv|html|gz)$", re.IGNORECASE)


def file_names(ids: Sequence[str]) -> list[str]:
    """File names without ending for the ids of records: safe on every file system, and unique.

    ASCII letters, digits, ".", "_" and "-" stay, anything else becomes "_"; no name begins with "."
    or "-", ends in ".", is longer than 100 characters, or is reserved by Windows or by `predict`.
    The first of several equal names (case aside) stays as it is; the others get the next free
    number, "-2" at first.

    Args:
        ids: of the records, in their order, which the names depend on.

    Returns:
        One name for each id, no two equal where case is ignored.
    """
    safe = [_safe(name) for name in ids]
    taken: set[str] = set()
    given = {name.lower() for name in safe}
    numbers: Counter[str] = Counter()
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
    """The next free number after a stem; names that records have of themselves are not free.

    Args:
        stem: of the name.
        given: all names, lower case, before any is numbered.
        numbers: how many numbers after each stem have been tried; counts on.
    """
    key = stem.lower()
    while True:
        numbers[key] += 1
        name = f"{stem}-{numbers[key] + 1}"
        if name.lower() not in given:
            return name
