"""Writing a store's file so that it can be gone on with after a kill at any moment.

Files are read in units, in one order. What a unit gives is written in one transaction, records and
journal together: LMDB keeps all of it or nothing. Who goes on after a kill finds the units that are
done, and the file ends up with the same contents as without the kill.
"""

import errno
import fcntl
import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

import lmdb

from esmfold_peft.datasets.manifest import ManifestEntry
from esmfold_peft.datasets.store import CHAINS, CHAINS_FILE, TABLES
from esmfold_peft.errors import UserError
from esmfold_peft.preparation.filters import Rejected
from esmfold_peft.preparation.reading import Read
from esmfold_peft.preparation.sources import Item
from esmfold_peft.protein.files import make_folder

_JOURNAL, _ABOUT = b"journal", b"about"
_SETTINGS = b"settings"
_LARGEST = 1 << 40  # bytes of addresses; the file is as large as its contents


@dataclass(frozen=True)
class UnitResult:
    """What one unit gave, as the journal keeps it.

    Attributes:
        files: how many it has.
        entries: lines of the manifest, each chain its own cluster.
        rejected: what was left out.
    """

    files: int
    entries: tuple[ManifestEntry, ...]
    rejected: tuple[Rejected, ...]


class StoreWriter:
    """The file of a store that is being made; only one process may write to it.

    Args:
        store: the folder; made if it is missing.
        settings: all that decides what the store holds, as JSON.

    Raises:
        UserError: another process writes to it, it was begun with other settings, is damaged, or
            the disk is full.
    """

    def __init__(self, store: Path, settings: str) -> None:
        make_folder(store)
        self.path = store / CHAINS_FILE
        with ExitStack() as opened:
            opened.enter_context(_locked(store))
            try:
                self._env = opened.enter_context(_environment(self.path))
                self._chains, self._journal, self._about = (
                    self._env.open_db(name) for name in (CHAINS, _JOURNAL, _ABOUT)
                )
                self._begin(settings.encode())
            except lmdb.Error as error:
                raise self._failure(error) from error
            self._opened = opened.pop_all()
        self._sources = {e.id: e.source for unit in self.journal() for e in unit.entries}

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._opened.close()

    def units_done(self, units: list[list[Item]]) -> int:
        """How many units, from the first, are in the file.

        Raises:
            UserError: one of them was read from other files than now.
        """
        with self._env.begin(self._journal) as transaction:
            for number, (_, value) in enumerate(transaction.cursor()):
                found = _unpacked(value)["digest"]
                if number >= len(units) or found != _digest(units[number]):
                    raise UserError(
                        f"{self.path}: was begun with other files than the sources have now;"
                        " choose another folder, or delete it"
                    )
            return transaction.stat()["entries"]

    def add(self, number: int, unit: list[Item], found: list[Read]) -> UnitResult:
        """Writes what a unit gave; of chains with one id, the first stays.

        Raises:
            UserError: the disk is full or fails; units before this one are safe.
        """
        entries, rejected = [], []
        try:
            with self._env.begin(write=True) as transaction:
                for read in found:
                    kept, refused = self._put(transaction, read)
                    entries += kept
                    rejected += refused
                result = UnitResult(len(found), tuple(entries), tuple(rejected))
                line = {"digest": _digest(unit), **asdict(result)}
                value = zlib.compress(json.dumps(line).encode())
                transaction.put(number.to_bytes(8, "big"), value, db=self._journal)
        except lmdb.Error as error:
            raise self._failure(error) from error
        return result

    def journal(self) -> Iterator[UnitResult]:
        """What every unit gave that is in the file, in order."""
        with self._env.begin(self._journal) as transaction:
            for _, value in transaction.cursor():
                line = _unpacked(value)
                yield UnitResult(
                    line["files"],
                    tuple(ManifestEntry(**entry) for entry in line["entries"]),
                    tuple(Rejected(**rejected) for rejected in line["rejected"]),
                )

    def record(self, name: str) -> bytes:
        """The record of a chain that is in the file."""
        with self._env.begin(self._chains) as transaction:
            return transaction.get(name.encode())  # pyright: ignore[reportReturnType]

    def _put(
        self, transaction: lmdb.Transaction, read: Read
    ) -> tuple[list[ManifestEntry], list[Rejected]]:
        kept, refused = [], list(read.rejected)
        for entry, record in zip(read.entries, read.records, strict=True):
            first = self._sources.setdefault(entry.id, entry.source)
            if transaction.put(entry.id.encode(), record, overwrite=False, db=self._chains):
                kept.append(entry)
            else:
                reason = f"the chain of this id is from {first}"
                refused.append(Rejected(entry.source, entry.id, "duplicate", reason))
        return kept, refused

    def _begin(self, settings: bytes) -> None:
        with self._env.begin(self._about, write=True) as transaction:
            found = transaction.get(_SETTINGS)
            if found is None:
                transaction.put(_SETTINGS, settings)
            elif found != settings:
                name = _first_difference(json.loads(found), json.loads(settings))
                raise UserError(
                    f"{self.path}: was begun with another setting of {name};"
                    " choose another folder, or delete it"
                )

    def _failure(self, error: lmdb.Error) -> UserError:
        if os.strerror(errno.ENOSPC) in str(error):
            return UserError(
                f"{self.path}: {os.strerror(errno.ENOSPC)}; what was done so far is kept: make"
                " space and give the same command again"
            )
        return UserError(f"{self.path}: cannot be used as the file of a store ({error})")


def _environment(path: Path) -> lmdb.Environment:
    return lmdb.open(str(path), subdir=False, lock=False, map_size=_LARGEST, max_dbs=TABLES)


def _locked(store: Path) -> IO[str]:
    """Takes the folder for this process, until it ends."""
    try:
        file = (store / ".lock").open("w")
    except OSError as error:
        raise UserError(f"{store}: {error.strerror}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise UserError(f"{store}: another process writes to this store") from error
    return file


def _digest(unit: list[Item]) -> str:
    """What tells whether a unit's files are those of an earlier run."""
    text = json.dumps([(item.place, item.size, item.stamp, item.fault) for item in unit])
    return hashlib.sha256(text.encode()).hexdigest()


def _unpacked(value: bytes) -> dict:
    return json.loads(zlib.decompress(value))


def _first_difference(old: dict, new: dict) -> str:
    return next(key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key))
