"""The list of chains in a store: one CSV line each, read into columns."""

import csv
import hashlib
import re
import sys
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from datetime import date
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int32, Shaped

from esmfold_peft.disk.csv_text import csv_text
from esmfold_peft.errors import UserError

FILE_NAME = "manifest.csv"


@dataclass(frozen=True)
class ManifestEntry:
    """One chain of a store.

    Attributes:
        id: name of the chain, unique in the store.
        source: the structure file that it was read from; of a tar, "<tar>/<member>".
        entity: label_entity_id in that file; None if it has none (PDB format).
        length: residues, resolved or not.
        resolved: residues with a Cα.
        resolution: Å; None if unknown.
        method: as the file states it; None if unknown.
        release_date: ISO date of the oldest revision; None if unknown.
        cluster: name of its cluster; its own id if it is in none.
        cluster_size: chains of the store in that cluster, or more by a cache of OpenFold.
        sequence_hash: first 16 hex digits of the SHA-256 of the sequence.
        hash: first 32 hex digits of the SHA-256 of the chain's record.
    """

    id: str
    source: str
    entity: str | None
    length: int
    resolved: int
    resolution: float | None
    method: str | None
    release_date: str | None
    cluster: str
    cluster_size: int
    sequence_hash: str
    hash: str


_COLUMNS = [field.name for field in fields(ManifestEntry)]


@dataclass(frozen=True, eq=False)
class Manifest:
    """The columns of a manifest (`ManifestEntry`) that training and evaluation need.

    An unknown resolution is NaN, an unknown release date (in days) is NaT.
    """

    path: Path
    ids: list[str]
    length: Int32[np.ndarray, "chains"]
    resolved: Int32[np.ndarray, "chains"]
    resolution: Float64[np.ndarray, "chains"]
    release_date: Shaped[np.ndarray, "chains"]
    cluster: list[str]
    cluster_size: Int32[np.ndarray, "chains"]
    sequence_hash: list[str]
    hash: list[str]

    def __len__(self) -> int:
        """Number of chains."""
        return len(self.ids)


def manifest_hash(store: Path) -> str:
    """SHA-256 of a store's manifest, which holds the hash of every chain."""
    return hashlib.sha256(manifest_path(store).read_bytes()).hexdigest()


def manifest_path(store: Path) -> Path:
    """The manifest in the folder of a store; a UserError where there is none."""
    try:
        found = (store / FILE_NAME).is_file()
    except OSError as error:
        raise UserError(f"{store}: {error.strerror}") from error
    if not found:
        raise UserError(
            f"{store}: no such store, or not a whole one: it has no {FILE_NAME}"
            " (make or finish it with: esmfold-peft prepare)"
        )
    return store / FILE_NAME


def read_manifest(path: Path) -> Manifest:
    """Reads a manifest; 600,000 chains take seconds.

    Raises:
        UserError: the file is not a manifest, is empty, or names a chain twice.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            manifest = _read(path, csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a manifest ({error})") from error
    if not len(manifest):
        raise UserError(f"{path}: the manifest lists no chain")
    if len(set(manifest.ids)) < len(manifest):
        twice = next(name for name, number in Counter(manifest.ids).items() if number > 1)
        raise UserError(f"{path}: {twice} is listed twice")
    return manifest


def manifest_text(entries: Iterable[ManifestEntry]) -> str:
    """The manifest as CSV."""
    return csv_text(ManifestEntry, entries)


def _read(path: Path, rows: Iterator[list[str]]) -> Manifest:
    if next(rows, None) != _COLUMNS:
        raise UserError(f"{path}:1: not a manifest: its columns must be {','.join(_COLUMNS)}")
    ids, dates, clusters, sequences, hashes = [], [], [], [], []
    lengths, resolved, sizes, resolutions = array("i"), array("i"), array("i"), array("d")
    for number, row in enumerate(rows, 2):
        if not row:  # an editor may have left an empty line
            continue
        if problem := _problem(row):
            raise UserError(f"{path}:{number}: not a line of a manifest ({problem})")
        name, _, _, length, ca, resolution, _, released, cluster, size, sequence, record = row
        ids.append(name)
        lengths.append(int(length))
        resolved.append(int(ca))
        resolutions.append(float(resolution or "nan"))
        dates.append(sys.intern(released or "NaT"))
        clusters.append(sys.intern(cluster))  # most are repeated
        sizes.append(int(size))
        sequences.append(sequence)
        hashes.append(record)
    return Manifest(
        path=path,
        ids=ids,
        length=np.array(lengths, dtype=np.int32),
        resolved=np.array(resolved, dtype=np.int32),
        resolution=np.array(resolutions, dtype=np.float64),
        release_date=np.array(dates, "datetime64[D]"),
        cluster=clusters,
        cluster_size=np.array(sizes, dtype=np.int32),
        sequence_hash=sequences,
        hash=hashes,
    )


_LENGTH, _RESOLVED, _SIZE = (_COLUMNS.index(n) for n in ("length", "resolved", "cluster_size"))
_RESOLUTION, _DATE = _COLUMNS.index("resolution"), _COLUMNS.index("release_date")
_WHOLE_NUMBER = re.compile("[0-9]{1,10}")


def _problem(row: list[str]) -> str:
    """The fault of a line; empty if there is none."""
    if len(row) != len(_COLUMNS):
        return f"{len(row)} values instead of {len(_COLUMNS)}"
    if not row[0]:
        return "the id is empty"
    for column, least in ((_LENGTH, 1), (_RESOLVED, 0), (_SIZE, 1)):
        text = row[column]
        if not (_WHOLE_NUMBER.fullmatch(text) and least <= int(text) < 2**31):
            return f"{_COLUMNS[column]} {text!r}"
    try:
        float(row[_RESOLUTION] or 0)
        # Both readers of dates take more, but not the same: "today", 20210916 as a year.
        if row[_DATE] and date.fromisoformat(row[_DATE]).isoformat() != row[_DATE]:
            return f"release_date {row[_DATE]!r}"
    except ValueError as error:
        return str(error)
    return ""
