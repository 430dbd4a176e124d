"""The list of chains that a data set consists of: one CSV line each."""

import csv
import io
from dataclasses import dataclass, fields
from pathlib import Path

from esmfold_peft.csv_text import csv_text
from esmfold_peft.errors import UserError

FILE_NAME = "manifest.csv"


@dataclass(frozen=True)
class ManifestEntry:
    """One chain of a data set.

    Attributes:
        id: name of the chain, unique in the manifest.
        file: the structure file, relative to the manifest's folder.
        chain: author's name of the chain in that file.
        length: residues, resolved or not.
        resolved: residues with a Cα.
        resolution: Å; None if unknown.
        release_date: ISO date; None if unknown.
    """

    id: str
    file: str
    chain: str
    length: int
    resolved: int
    resolution: float | None
    release_date: str | None


_COLUMNS = [field.name for field in fields(ManifestEntry)]


def manifest_path(path: Path) -> Path:
    """The manifest itself, given it or the folder that `prepare` wrote it to.

    Raises:
        UserError: there is none.
    """
    found = path / FILE_NAME if path.is_dir() else path
    if not found.is_file():
        raise UserError(f"{found}: no such manifest (make one with: esmfold-peft prepare)")
    return found


def read_manifest(path: Path) -> list[ManifestEntry]:
    """Reads a manifest.

    Args:
        path: the CSV file.

    Raises:
        UserError: the file is not a manifest, is empty, or names a chain twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a manifest ({error})") from error
    reader = csv.DictReader(io.StringIO(text))
    if reader.fieldnames != _COLUMNS:
        raise UserError(f"{path}:1: not a manifest: its columns must be {','.join(_COLUMNS)}")
    entries: dict[str, ManifestEntry] = {}
    for row in reader:
        place = f"{path}:{reader.line_num}"
        entry = _entry(row, place)
        if entry.id in entries:
            raise UserError(f"{place}: {entry.id} is listed twice")
        entries[entry.id] = entry
    if not entries:
        raise UserError(f"{path}: the manifest lists no chain")
    return list(entries.values())


def manifest_text(entries: list[ManifestEntry]) -> str:
    """The manifest as CSV."""
    return csv_text(ManifestEntry, entries)


def _entry(row: dict[str, str], place: str) -> ManifestEntry:
    try:
        return ManifestEntry(
            id=row["id"],
            file=row["file"],
            chain=row["chain"],
            length=int(row["length"]),
            resolved=int(row["resolved"]),
            resolution=float(row["resolution"]) if row["resolution"] else None,
            release_date=row["release_date"] or None,
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"{place}: not a line of a manifest ({error})") from error
