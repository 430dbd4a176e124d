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
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from types import TracebackType

import lmdb

from esmfold_peft.datasets.manifest import FILE_NAME, ManifestEntry
from esmfold_peft.datasets.store import CHAINS, CHAINS_FILE, TABLES, require_whole_file
from esmfold_peft.disk.files import lock_folder, make_folder
from esmfold_peft.errors import UserError
from esmfold_peft.preparation.filters import Note, Rejected
from esmfold_peft.preparation.reading import LONGEST_ID, Read
from esmfold_peft.preparation.sources import Item
from esmfold_peft.protein.read import is_pdb_id

_JOURNAL, _ABOUT = b"journal", b"about"
_TABLE_NAMES = (CHAINS, _JOURNAL, _ABOUT)
_SETTINGS = b"settings"
_LARGEST = 1 << 40  # bytes of addresses; the file is as large as its contents
# Of a write that had space for a part only, LMDB says EIO.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


@dataclass(frozen=True)
class Named:
    """The names that a chain may have.

    Attributes:
        stated: after the entry that its file states.
        own: after the file itself.
    """

    stated: str
    own: str


@dataclass(frozen=True)
class UnitResult:
    """What one unit gave, as the journal keeps it.

    Attributes:
        files: how many it has.
        entries: lines of the manifest, each chain its own cluster.
        named: the names of the same chains.
        rejected: what was left out.
        notes: on chains.
    """

    files: int
    entries: tuple[ManifestEntry, ...]
    named: tuple[Named, ...]
    rejected: tuple[Rejected, ...]
    notes: tuple[Note, ...]


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
            self._sources: dict[str, dict[str, str]] = {}
            for unit in self.journal():
                for entry, named in zip(unit.entries, unit.named, strict=True):
                    self._sources.setdefault(named.stated, {})[entry.hash] = entry.source
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
        """Writes what a unit gave.

        Of equal chains with one id the first stays. Where the chains differ, the later one is named
        after its file.

        Raises:
            UserError: the disk is full or fails; units before this one are safe.
        """
        with self._explained(), self._env.begin(self._chains, write=True) as transaction:
            kept, refused = self._put(transaction, found)
            line = {
                "digest": _digest(unit),
                "files": len(found),
                "entries": [vars(entry) for entry, _ in kept],
                "named": [vars(named) for _, named in kept],
                "rejected": [vars(reason) for reason in refused],
                "notes": [vars(note) for read in found for note in read.notes],
            }
            self._write_line(transaction, number, line)

    def journal(self) -> Iterator[UnitResult]:
        """What every unit gave that is in the file, in order."""
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

    def _put(
        self, transaction: lmdb.Transaction, found: list[Read]
    ) -> tuple[list[tuple[ManifestEntry, Named]], list[Rejected]]:
        kept, refused = [], []
        for read in found:
            refused += read.rejected
            for entry, record, own in zip(read.entries, read.records, read.file_ids, strict=True):
                named, same_id = Named(entry.id, own), self._sources.setdefault(entry.id, {})
                name = None
                if entry.hash not in same_id:
                    if same_id:
                        self._name_after_file(transaction, entry.id, kept)
                    name = _free_name(transaction, named, entry.source, stated=not same_id)
                if name is None:
                    refused.append(_duplicate(entry, same_id))
                    continue
                same_id[entry.hash] = entry.source
                transaction.put(name.encode(), record)
                kept.append((replace(entry, id=name, cluster=name), named))
        return kept, refused

    def _name_after_file(
        self, transaction: lmdb.Transaction, name: str, kept: list[tuple[ManifestEntry, Named]]
    ) -> None:
        """Renames the chain that has an id which others state too, unless its file has that name.

        Which name a chain has then hardly depends on the order of the files.
        """
        for place, (entry, named) in enumerate(kept):
            if entry.id == name == named.stated:
                new = _renamed(transaction, named, entry.source)
                kept[place] = replace(entry, id=new, cluster=new), named
                return
        for key, value in transaction.cursor(db=self._journal):
            line = _unpacked(bytes(value))
            for entry, named in zip(line["entries"], line["named"], strict=True):
                if entry["id"] == name == named["stated"]:
                    new = _renamed(transaction, Named(**named), entry["source"])
                    entry["id"] = entry["cluster"] = new
                    self._write_line(transaction, int.from_bytes(key, "big"), line)
                    return

    def _write_line(self, transaction: lmdb.Transaction, number: int, line: dict) -> None:
        value = zlib.compress(json.dumps(line).encode())
        transaction.put(number.to_bytes(8, "big"), value, db=self._journal)

    def _lines(self) -> Iterator[dict]:
        """The journal."""
        with self._explained(), self._env.begin(self._journal) as transaction:
            for _, value in transaction.cursor():
                yield _unpacked(value)

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


def _unpacked(value: bytes) -> dict:
    """A line of the journal."""
    return json.loads(zlib.decompress(value))


def _renamed(transaction: lmdb.Transaction, named: Named, source: str) -> str:
    """Gives a chain that is named after its entry the name of its file; the new name."""
    new = named.stated if named.own == named.stated else _free_name(transaction, named, source)
    record = transaction.pop(named.stated.encode()) or b""
    transaction.put((new or named.stated).encode(), record)
    return new or named.stated


def _duplicate(entry: ManifestEntry, same_id: dict[str, str]) -> Rejected:
    """Says which chain has the id; one that differs needs another name to be kept."""
    first = same_id.get(entry.hash) or next(iter(same_id.values()), "another file")
    reason = f"the chain of this id is from {first}"
    if entry.hash not in same_id:
        reason = f"another chain of this id is from {first}; rename this file to keep both"
    return Rejected(entry.source, entry.id, "duplicate", reason)


def _free_name(
    transaction: lmdb.Transaction, named: Named, source: str, *, stated: bool = False
) -> str | None:
    """The first name of a chain that no other has; None if all are taken.

    Args:
        transaction: on the table of chains.
        named: its names.
        source: its file, whose folder may tell it apart, but does not make another PDB entry of it.
        stated: whether it may be named after the entry.
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
    """Removes what a killed run left half written, and the list of a file that is gone."""
    for name in (CHAINS_FILE, FILE_NAME, "rejected.csv", "notes.csv", "report.json"):
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
