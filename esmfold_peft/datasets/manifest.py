"""The list of chains in a store: one CSV line each, read into columns."""

import csv
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from datetime import date
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int32, Shaped

from esmfold_peft.disk.csv_text import csv_text
from esmfold_peft.errors import UserError

FILE_NAME = "manifest.csv"

_ROWS_AT_A_TIME = 20_000  # bounds what 600,000 lines take while they are turned into columns


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
        cluster_size: chains of the store in that cluster, or more if a cache of OpenFold says so.
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
    """What training and evaluation need of a manifest, as columns of `chains` rows.

    Attributes:
        path: the CSV file.
        ids: names of the chains.
        length: residues, resolved or not.
        resolved: residues with a Cα.
        resolution: Å; NaN if unknown.
        release_date: days; NaT if unknown.
        cluster: name of the cluster.
        cluster_size: chains in that cluster, at least 1.
        sequence_hash: equal for equal sequences.
        hash: of the chain's record.
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


def manifest_path(store: Path) -> Path:
    """The manifest in the folder of a store.

    Raises:
        UserError: there is none.
    """
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

    Args:
        path: the CSV file.

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
        _refuse_repetition(manifest)
    return manifest


def manifest_text(entries: Iterable[ManifestEntry]) -> str:
    """The manifest as CSV."""
    return csv_text(ManifestEntry, entries)


def _read(path: Path, rows: Iterator[list[str]]) -> Manifest:
    if next(rows, None) != _COLUMNS:
        raise UserError(f"{path}:1: not a manifest: its columns must be {','.join(_COLUMNS)}")
    parts = []
    while block := list(islice(rows, _ROWS_AT_A_TIME)):
        parts.append(_columns(block, path, 2 + len(parts) * _ROWS_AT_A_TIME))
    return _joined(parts or [_columns([], path, 2)])


def _columns(rows: list[list[str]], path: Path, first_line: int) -> Manifest:
    """Some lines of a manifest."""
    for number, row in enumerate(rows, first_line):
        if row and (problem := _problem(row)):
            raise UserError(f"{path}:{number}: not a line of a manifest ({problem})")
    rows = [row for row in rows if row]  # an editor may have left an empty line
    table = dict(zip(_COLUMNS, zip(*rows, strict=True), strict=True)) if rows else {}
    texts = {name: table.get(name, ()) for name in _COLUMNS}
    return Manifest(
        path=path,
        ids=list(texts["id"]),
        length=np.array(texts["length"], dtype=np.int32),
        resolved=np.array(texts["resolved"], dtype=np.int32),
        resolution=np.array([t or "nan" for t in texts["resolution"]], dtype=np.float64),
        release_date=np.array([t or "NaT" for t in texts["release_date"]], "datetime64[D]"),
        cluster=list(map(sys.intern, texts["cluster"])),  # most are repeated
        cluster_size=np.array(texts["cluster_size"], dtype=np.int32),
        sequence_hash=list(texts["sequence_hash"]),
        hash=list(texts["hash"]),
    )


def _joined(parts: list[Manifest]) -> Manifest:
    def column(name: str) -> Any:
        found = [getattr(part, name) for part in parts]
        return (
            np.concatenate(found)
            if isinstance(found[0], np.ndarray)
            else list(chain.from_iterable(found))
        )

    names = [field.name for field in fields(Manifest) if field.name != "path"]
    return Manifest(path=parts[0].path, **{name: column(name) for name in names})


_LENGTH, _RESOLVED, _SIZE = (_COLUMNS.index(n) for n in ("length", "resolved", "cluster_size"))
_RESOLUTION, _DATE = _COLUMNS.index("resolution"), _COLUMNS.index("release_date")
_WHOLE_NUMBER = re.compile("[0-9]{1,10}")


def _problem(row: list[str]) -> str:
    """What is wrong with a line; empty if nothing is."""
    if len(row) != len(_COLUMNS):
        return f"{len(row)} values instead of {len(_COLUMNS)}"
    if not row[0]:
        return "the id is empty"
    for column, least in ((_LENGTH, 1), (_RESOLVED, 0), (_SIZE, 1)):
        text = row[column]
        if not (_WHOLE_NUMBER.fullmatch(text) and least <= int(text) < 2**31):
            return f"{_COLUMNS[column]} {text!r}"
    try:
        if row[_RESOLUTION]:
            float(row[_RESOLUTION])
        # Both readers of dates take more, but not the same: "today", 20210916 as a year.
        if row[_DATE] and date.fromisoformat(row[_DATE]).isoformat() != row[_DATE]:
            return f"release_date {row[_DATE]!r}"
    except ValueError as error:
        return str(error)
    return ""


def _refuse_repetition(manifest: Manifest) -> None:
    seen: set[str] = set()
    for name in manifest.ids:
        if name in seen:
            raise UserError(f"{manifest.path}: {name} is listed twice")
        seen.add(name)
