"""Lists of ids: `prepare` takes only these from its sources."""

import re
from pathlib import Path

from esmfold_peft.disk.files import read_bytes
from esmfold_peft.errors import UserError

_LONG_FORM = re.compile("^pdb_0000(?=[0-9])")
_ENTRY = re.compile(r"[0-9][a-z0-9]{3}|pdb_[0-9a-z]{8}", re.IGNORECASE)


class Selection:
    """The entries and chains that lists name.

    Lists are text files of ids separated by blanks, commas or lines: entries ("1ubq") and chains
    ("1ubq_A"). A comment begins with #. PDB codes are compared without case.

    Raises:
        UserError: a file cannot be read or names nothing.
    """

    def __init__(self, lists: tuple[Path, ...]) -> None:
        self.listed: dict[str, Path] = {}
        for path in lists:
            ids = _ids(path)
            if not ids:
                raise UserError(f"{path}: the list names no id")
            self.listed |= {normalized(name): path for name in ids}
        self._entries = {_entry(name) for name in self.listed}

    def has_entry(self, code: str) -> bool:
        """Whether an entry, or a chain of it, is listed."""
        return code in self._entries

    def match(self, chain: str) -> str | None:
        """The listed id that selects a chain: its own, or its entry's; else None."""
        chain = normalized(chain)
        return next((name for name in (chain, _entry(chain)) if name in self.listed), None)


def normalized(name: str) -> str:
    """An id whose PDB code is in lower case, and short (1ubq) where it has a short form."""
    entry = _entry(name)
    if not _ENTRY.fullmatch(entry):
        return name
    return _LONG_FORM.sub("", entry.lower()) + name[len(entry) :]


def _entry(name: str) -> str:
    found = _ENTRY.match(name)
    if found and (found.end() == len(name) or name[found.end()] == "_"):
        return found[0]
    return name


def _ids(path: Path) -> list[str]:
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a list of ids ({error})") from error
    lines = (line.partition("#")[0] for line in text.splitlines())
    return [word for line in lines for word in line.replace(",", " ").split()]
