"""A store: the folder that `prepare` makes of structure files, and that training reads.

chains.lmdb     one record for each chain (`records`), by the chain's id
manifest.csv    one line for each chain (`manifest`); written last: a store without one is not whole
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import lmdb

from esmfold_peft.datasets.features import Features
from esmfold_peft.datasets.manifest import FILE_NAME, Manifest, manifest_path, read_manifest
from esmfold_peft.datasets.records import from_record, record_hash, sequence_of
from esmfold_peft.errors import UserError

CHAINS_FILE = "chains.lmdb"
CHAINS = b"chains"
"""Name of the table of records inside the file."""

TABLES = 3
"""Tables that a store's file may hold."""


class Store(Sequence[Features]):
    """The chains of a store, in the manifest's order; `path` is its folder.

    Other processes may get it: each opens the file for itself. A manifest from which lines were
    deleted is that of a smaller store.

    Raises:
        UserError: there is no store, or it is not whole or broken.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest: Manifest = read_manifest(manifest_path(path))
        self._require_all()

    def __len__(self) -> int:
        """Number of chains."""
        return len(self.manifest)

    def __getitem__(self, index: int) -> Features:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The features of one chain; a UserError if its record is not the manifest's."""
        manifest = self.manifest
        name, record = manifest.ids[index], self._record(manifest.ids[index])
        if record_hash(record) != manifest.hash[index]:
            raise UserError(f"{self.path}: {name} in {CHAINS_FILE} is not what {FILE_NAME} lists")
        return from_record(record, name, float(manifest.resolution[index]))

    def sequence(self, index: int) -> str:
        """The one-letter codes of a chain."""
        return sequence_of(self._record(self.manifest.ids[index]))

    def _record(self, name: str) -> bytes:
        with self._transaction() as transaction:
            record = transaction.get(name.encode())
        if record is None:  # the store was made again after it was opened
            raise self._missing(name)
        return record  # pyright: ignore[reportReturnType]

    @contextmanager
    def _transaction(self) -> Iterator[lmdb.Transaction]:
        env, table = open_chains(self.path)
        try:
            with env.begin(table) as transaction:
                yield transaction
        except lmdb.Error as error:
            raise UserError(f"{self.path / CHAINS_FILE}: damaged ({error})") from error

    def _missing(self, name: str) -> UserError:
        return UserError(
            f"{self.path}: {name} of {FILE_NAME} is not in {CHAINS_FILE}; make the store again"
        )

    def _require_all(self) -> None:
        """Looks up every id, so that a missing chain does not stop a run in its tenth hour."""
        with self._transaction() as transaction:
            cursor = transaction.cursor()
            for name in self.manifest.ids:
                if not cursor.set_key(name.encode()):
                    raise self._missing(name)


_OPENED: dict[str, tuple[tuple[int, int], lmdb.Environment, lmdb._Database]] = {}
"""By path: process and inode, environment, table of records.

LMDB forbids a process to open a file twice, and to use a file that it opened before a fork.
"""


def open_chains(store: Path) -> tuple[lmdb.Environment, lmdb._Database]:
    """Opens the file of a store for reading, once in each process: environment, table of records.

    Raises:
        UserError: the file is missing or damaged.
    """
    path = (store / CHAINS_FILE).resolve()
    try:
        key = os.getpid(), path.stat().st_ino
        found = _OPENED.get(str(path))
        if found is not None and found[0] != key:
            _OPENED.pop(str(path))[1].close()
            found = None
        if found is None:
            env = lmdb.open(
                str(path),
                subdir=False,
                readonly=True,
                lock=False,  # nobody writes to a whole store, and it may lie on a read-only disk
                readahead=False,  # chains are read in random order
                max_dbs=TABLES,
            )
            require_whole_file(env, path)
            found = _OPENED[str(path)] = key, env, env.open_db(CHAINS, create=False)
    except (OSError, lmdb.Error) as error:
        raise UserError(f"{path}: not the file of a store ({error})") from error
    return found[1], found[2]


def require_whole_file(env: lmdb.Environment, path: Path) -> None:
    """Refuses a file that was cut off: LMDB maps it, and reading beyond its end kills the process.

    Raises:
        UserError: the file is shorter than it says.
    """
    size, least = path.stat().st_size, (env.info()["last_pgno"] + 1) * env.stat()["psize"]
    if size < least:
        raise UserError(f"{path}: was cut off: {size:,} bytes of at least {least:,}")
