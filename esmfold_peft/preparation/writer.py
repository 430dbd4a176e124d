"""Writing a store's file so that a run can be resumed after a kill at any moment.

Files are read in units, in one order. The result of a unit is written in one transaction, records
and journal together: LMDB keeps all of it or nothing (`disk.journal`, a second file, could not). A
resumed run finds the units that are done, and the file ends up with the same contents as without
the kill.
"""

import errno
import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path, PurePath
from typing import Any

import lmdb

from esmfold_peft.datasets.manifest import FILE_NAME, ManifestEntry
from esmfold_peft.datasets.store import CHAINS, CHAINS_FILE, TABLES, require_whole_file
from esmfold_peft.disk.files import make_folder
from esmfold_peft.disk.locks import lock_folder
from esmfold_peft.errors import UserError
from esmfold_peft.preparation.filters import Note, Rejected
from esmfold_peft.preparation.reading import LONGEST_ID, Read, ReadChain
from esmfold_peft.preparation.sources import Item
from esmfold_peft.protein.read import is_pdb_id

_JOURNAL, _ABOUT = b"journal", b"about"
_TABLE_NAMES = (CHAINS, _JOURNAL, _ABOUT)
_SETTINGS = b"settings"
_LARGEST = 1 << 40  # bytes of addresses; the file is as large as its contents
# LMDB says EIO if only a part of a write had space.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


@dataclass(frozen=True)
class Named:
    """The names that a chain may have: after the entry that its file states, and after the file."""

    stated: str
    own: str


@dataclass(frozen=True)
class UnitResult:
    """The result of one unit, as the journal keeps it.

    Attributes:
        files: how many it has.
        entries: lines of the manifest, each chain its own cluster.
        named: the names of the same chains.
        rejected: lines of rejected.csv.
        notes: on chains.
    """

    files: int
    entries: tuple[ManifestEntry, ...]
    named: tuple[Named, ...]
    rejected: tuple[Rejected, ...]
    notes: tuple[Note, ...]


class StoreWriter(AbstractContextManager["StoreWriter"]):
    """The file of a store that is being made; only one process may write to it.

    Args:
        store: the folder; made if it is missing.
        settings: all that decide on the contents of the store, as JSON.

    Raises:
        UserError: another process writes to it, it was started with other settings, is damaged, or
            the disk is full.
    """

    def __init__(self, store: Path, settings: str) -> None:
        make_folder(store)
        self.path = store / CHAINS_FILE
        with ExitStack() as opened, self._explained():
            opened.enter_context(lock_folder(store))
            _clear_away(store)
            if not self.path.exists():
                _make_file(self.path, settings)
            self._env = opened.enter_context(_environment(self.path))
            require_whole_file(self._env, self.path)
            self._chains, self._journal, self._about = (
                self._env.open_db(name, create=False) for name in _TABLE_NAMES
            )
            with self._env.begin(write=True) as transaction:
                self._require_same(transaction, settings)
            self._sources: dict[str, dict[str, str]] = {}
            for unit in self.journal():
                for entry, named in zip(unit.entries, unit.named, strict=True):
                    self._sources.setdefault(named.stated, {})[entry.hash] = entry.source
            self._opened = opened.pop_all()

    def __exit__(self, *error: object) -> None:
        self._opened.close()

    def units_done(self, units: list[list[Item]]) -> int:
        """How many units, from the first, are in the file.

        Raises:
            UserError: one of them was read from other files than now.
        """
        done = 0
        for line in self._lines():
            if done >= len(units) or line["digest"] != _digest(units[done]):
                raise UserError(
                    f"{self.path}: was started with other files than the sources have now, or with"
                    " the same files under other paths; name them as before, choose another folder,"
                    " or delete this file"
                )
            done += 1
        return done

    def add(self, number: int, unit: list[Item], found: list[Read]) -> None:
        """Writes the result of a unit.

        Of equal chains with one id the first stays. Where the chains differ, the later one is named
        after its file.

        Raises:
            UserError: the disk is full or fails; units before this one are safe.
        """
        line = {"digest": _digest(unit), "files": len(found), "entries": [], "named": []}
        line |= {"rejected": [], "notes": [vars(note) for read in found for note in read.notes]}
        with self._explained(), self._env.begin(self._chains, write=True) as transaction:
            for read in found:
                line["rejected"] += map(vars, read.rejected)
                for each in read.chains:
                    self._put(transaction, each, line)
            self._write_line(transaction, number.to_bytes(8, "big"), line)

    def journal(self) -> Iterator[UnitResult]:
        """The results of the units in the file, in order."""
        for line in self._lines():
            yield UnitResult(
                line["files"],
                tuple(ManifestEntry(**entry) for entry in line["entries"]),
                tuple(Named(**named) for named in line["named"]),
                tuple(Rejected(**rejected) for rejected in line["rejected"]),
                tuple(Note(**note) for note in line["notes"]),
            )

    def record(self, name: str) -> bytes:
        """The record of a chain that is in the file."""
        with self._env.begin(self._chains) as transaction:
            return transaction.get(name.encode())  # pyright: ignore[reportReturnType]

    def _put(self, transaction: lmdb.Transaction, found: ReadChain, line: dict[str, Any]) -> None:
        entry, named = found.entry, Named(found.entry.id, found.own)
        same_id = self._sources.setdefault(entry.id, {})
        name = None
        if entry.hash not in same_id:
            if same_id:
                self._name_after_file(transaction, entry.id, line)
            name = _free_name(transaction, named, entry.source, stated=not same_id)
        if name is None:
            line["rejected"].append(vars(_duplicate(entry, same_id)))
            return
        same_id[entry.hash] = entry.source
        transaction.put(name.encode(), found.record)
        line["entries"].append(vars(replace(entry, id=name, cluster=name)))
        line["named"].append(vars(named))

    def _name_after_file(
        self, transaction: lmdb.Transaction, name: str, line: dict[str, Any]
    ) -> None:
        """Renames the chain that has an id which others state too, unless its file has that name.

        The names of chains then hardly depend on the order of the files. The chain is of this unit,
        whose line is not in the journal yet, or of an earlier one.
        """
        journal = transaction.cursor(db=self._journal)
        earlier = ((bytes(key), _unpacked(bytes(value))) for key, value in journal)
        for key, there in chain([(None, line)], earlier):
            for entry, named in zip(there["entries"], there["named"], strict=True):
                if entry["id"] == name == named["stated"]:
                    new = _renamed(transaction, Named(**named), entry["source"])
                    entry["id"] = entry["cluster"] = new
                    if key is not None:
                        self._write_line(transaction, key, there)
                    return

    def _write_line(self, transaction: lmdb.Transaction, key: bytes, line: dict) -> None:
        transaction.put(key, zlib.compress(json.dumps(line).encode()), db=self._journal)

    def _lines(self) -> Iterator[dict]:
        with self._explained(), self._env.begin(self._journal) as transaction:
            for _, value in transaction.cursor():
                yield _unpacked(value)

    def _require_same(self, transaction: lmdb.Transaction, settings: str) -> None:
        """Refuses a file of other settings, unless no chain was found, as in a wrong folder."""
        if transaction.stat(self._chains)["entries"] == 0:
            transaction.drop(self._journal, delete=False)
            transaction.put(_SETTINGS, settings.encode(), db=self._about)
        old = json.loads(bytes(transaction.get(_SETTINGS, b"{}", self._about)))
        new = json.loads(settings)
        if old != new:
            keys = sorted(old.keys() | new.keys())
            name = next(key for key in keys if old.get(key) != new.get(key))
            raise UserError(
                f"{self.path}: was started with another setting of {name};"
                " choose another folder, or delete this file"
            )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns an error of LMDB or the disk into one line."""
        try:
            yield
        except (lmdb.Error, zlib.error, OSError) as error:
            message = f"cannot be used as the file of a store ({error})"
            if any(os.strerror(code) in str(error) for code in _FULL):
                message = (
                    f"the disk is full or fails ({error}); what was done so far is kept: free space"
                    " and give the same command again"
                )
            raise UserError(f"{self.path}: {message}") from error


def _unpacked(value: bytes) -> dict[str, Any]:
    return json.loads(zlib.decompress(value))


def _renamed(transaction: lmdb.Transaction, named: Named, source: str) -> str:
    """Gives a chain that is named after its entry the name of its file; the new name."""
    new = named.stated if named.own == named.stated else _free_name(transaction, named, source)
    record = transaction.pop(named.stated.encode()) or b""
    transaction.put((new or named.stated).encode(), record)
    return new or named.stated


def _duplicate(entry: ManifestEntry, same_id: dict[str, str]) -> Rejected:
    """Names the file whose chain has the id; a chain that differs needs another name to be kept."""
    first = same_id.get(entry.hash) or next(iter(same_id.values()), "another file")
    reason = f"the chain of this id is from {first}"
    if entry.hash not in same_id:
        reason = f"another chain of this id is from {first}; rename this file to keep both"
    return Rejected(entry.source, entry.id, "duplicate", reason)


def _free_name(
    transaction: lmdb.Transaction, named: Named, source: str, *, stated: bool = False
) -> str | None:
    """The first name of a chain that no other in the table has; None if all are taken.

    The folders of its file may become part of its name, unless that is a PDB id. If `stated`, it
    may be named after its entry.
    """
    names = [named.stated] if stated else []
    names.append(named.own)
    if not is_pdb_id(named.own):
        for folder in PurePath(source).parents:
            names.append(f"{folder.name}_{names[-1]}")
    keys = [name.encode() for name in names]
    free = (key for key in keys if len(key) <= LONGEST_ID and transaction.get(key) is None)
    return next((key.decode() for key in free), None)


def _clear_away(store: Path) -> None:
    """Removes files that a killed run left half written, and the manifest of a lost file."""
    for name in (CHAINS_FILE, FILE_NAME, "rejected.csv", "notes.csv", "report.json"):
        for left in store.glob(f".{name}*.tmp"):
            left.unlink()
    if not (store / CHAINS_FILE).exists():
        (store / FILE_NAME).unlink(missing_ok=True)


def _make_file(path: Path, settings: str) -> None:
    """Makes a file without chains; it gets its name when it is whole."""
    temporary = path.with_name(f".{path.name}.tmp")
    with _environment(temporary) as env:
        for name in _TABLE_NAMES:
            env.open_db(name)
        with env.begin(env.open_db(_ABOUT), write=True) as transaction:
            transaction.put(_SETTINGS, settings.encode())
    temporary.rename(path)


def _environment(path: Path) -> lmdb.Environment:
    return lmdb.open(str(path), subdir=False, lock=False, map_size=_LARGEST, max_dbs=TABLES)


def _digest(unit: list[Item]) -> str:
    """A hash that is equal if a unit has the same files as in an earlier run."""
    text = json.dumps([(item.place, item.size, item.stamp, item.fault) for item in unit])
    return hashlib.sha256(text.encode()).hexdigest()
