"""Writing a store's file so that it can be gone on with after a kill at any moment.

Files are read in units, in one order. What a unit gives is written in one transaction, records and
journal together: LMDB keeps all of it or nothing. Who goes on after a kill finds the units that are
done, and the file ends up with the same contents as without the kill.
"""

import errno
import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import lmdb

from esmfold_peft.datasets.manifest import FILE_NAME, ManifestEntry
from esmfold_peft.datasets.store import CHAINS, CHAINS_FILE, TABLES, require_whole_file
from esmfold_peft.errors import UserError
from esmfold_peft.preparation.filters import Rejected
from esmfold_peft.preparation.reading import Read
from esmfold_peft.preparation.sources import Item
from esmfold_peft.protein.files import lock_folder, make_folder

_JOURNAL, _ABOUT = b"journal", b"about"
_TABLE_NAMES = (CHAINS, _JOURNAL, _ABOUT)
_SETTINGS = b"settings"
_LARGEST = 1 << 40  # bytes of addresses; the file is as large as its contents
# Of a write that had space for a part only, LMDB says EIO.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


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
            self._forget_failures(settings)
            self._require_same(settings)
            self._sources = {e.id: e.source for unit in self.journal() for e in unit.entries}
            self._opened = opened.pop_all()

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
        done = 0
        for line in self._lines():
            if done >= len(units) or line["digest"] != _digest(units[done]):
                raise UserError(
                    f"{self.path}: was begun with other files than the sources have now, or with"
                    " the same under other paths; name them as before, choose another folder, or"
                    " delete it"
                )
            done += 1
        return done

    def add(self, number: int, unit: list[Item], found: list[Read]) -> None:
        """Writes what a unit gave; of chains with one id, the first stays.

        Raises:
            UserError: the disk is full or fails; units before this one are safe.
        """
        entries, rejected = [], []
        with self._explained(), self._env.begin(write=True) as transaction:
            for read in found:
                kept, refused = self._put(transaction, read)
                entries += kept
                rejected += refused
            line = {
                "digest": _digest(unit),
                "files": len(found),
                "entries": [vars(entry) for entry in entries],
                "rejected": [vars(reason) for reason in rejected],
            }
            value = zlib.compress(json.dumps(line).encode())
            transaction.put(number.to_bytes(8, "big"), value, db=self._journal)

    def journal(self) -> Iterator[UnitResult]:
        """What every unit gave that is in the file, in order."""
        for line in self._lines():
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

    def _lines(self) -> Iterator[dict]:
        """The journal."""
        with self._explained(), self._env.begin(self._journal) as transaction:
            for _, value in transaction.cursor():
                yield json.loads(zlib.decompress(value))

    def _forget_failures(self, settings: str) -> None:
        """Begins anew where no chain was found so far, for example in a wrong folder."""
        with self._env.begin(write=True) as transaction:
            if transaction.stat(self._chains)["entries"] == 0:
                transaction.drop(self._journal, delete=False)
                transaction.put(_SETTINGS, settings.encode(), db=self._about)

    def _require_same(self, settings: str) -> None:
        with self._env.begin(self._about) as transaction:
            found = json.loads(transaction.get(_SETTINGS, b"{}"))
        if found != json.loads(settings):
            name = _first_difference(found, json.loads(settings))
            raise UserError(
                f"{self.path}: was begun with another setting of {name};"
                " choose another folder, or delete it"
            )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Says in one line what LMDB or the disk cannot do."""
        try:
            yield
        except (lmdb.Error, zlib.error, OSError) as error:
            if any(os.strerror(code) in str(error) for code in _FULL):
                raise UserError(
                    f"{self.path}: the disk is full or fails ({error}); what was done so far is"
                    " kept: make space and give the same command again"
                ) from error
            raise UserError(
                f"{self.path}: cannot be used as the file of a store ({error})"
            ) from error


def _clear_away(store: Path) -> None:
    """Removes what a killed run left half written, and the list of a file that is gone."""
    for name in (CHAINS_FILE, FILE_NAME, "rejected.csv", "report.json"):
        for left in store.glob(f".{name}*.tmp"):
            left.unlink()
    if not (store / CHAINS_FILE).exists():
        (store / FILE_NAME).unlink(missing_ok=True)


def _make_file(path: Path, settings: str) -> None:
    """Makes a file without chains, which has its name only when it is whole."""
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
    """What tells whether a unit's files are those of an earlier run."""
    text = json.dumps([(item.place, item.size, item.stamp, item.fault) for item in unit])
    return hashlib.sha256(text.encode()).hexdigest()


def _first_difference(old: dict, new: dict) -> str:
    return next(key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key))
