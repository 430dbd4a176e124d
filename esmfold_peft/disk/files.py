"""Whole files: reading, plain or gzip-compressed, and writing that leaves no half of a file."""

import gzip
import io
import json
import os
import re
import zlib
from pathlib import Path
from typing import Any

from esmfold_peft.errors import UserError

_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_RATIO = 1032
"""Deflate makes no file smaller by a larger factor."""
_MOST_BYTES = 4 << 30


def read_bytes(path: Path) -> bytes:
    """Reads a whole file and decompresses it if its content, not its name, says gzip.

    Raises:
        UserError: the file is missing, unreadable, empty, or a gzip file that is damaged or would
            expand to more than 4 GiB.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    return decompressed(data, path)


def decompressed(data: bytes, place: Path | str) -> bytes:
    """The content of a file, decompressed if it says gzip; `place` is for the message.

    Raises:
        UserError: it is empty, or a gzip file that is damaged or would expand to more than 4 GiB.
    """
    if data.startswith(_GZIP_MAGIC):
        try:
            if _expands_too_far(data):
                raise UserError(f"{place}: expands to more than {_MOST_BYTES >> 30} GiB")
            data = gzip.decompress(data)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{place}: damaged gzip file ({error})") from error
    if not data or data.isspace():
        raise UserError(f"{place}: the file is empty")
    return data


def _expands_too_far(data: bytes) -> bool:
    """Whether a gzip file holds too much; the decompressed bytes are counted, not kept."""
    if len(data) * _GZIP_RATIO <= _MOST_BYTES:
        return False
    with gzip.open(io.BytesIO(data)) as stream:
        return stream.seek(_MOST_BYTES + 1) > _MOST_BYTES


def require_file(path: Path, what: str = "") -> None:
    """Refuses a path that does not exist or cannot be read; `what` begins the message."""
    place = f"{what}: {path}" if what else f"{path}:"
    try:
        found = path.exists()
    except OSError as error:  # a name that is too long, for example
        raise UserError(f"{place} cannot be read ({error.strerror})") from error
    if not found:
        raise UserError(f"{place} does not exist")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; a UserError if it cannot be read, or holds something else."""
    try:
        content = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object")
    return content


def make_folder(path: Path) -> None:
    """Makes a folder and those above it; a UserError if that fails, or a file has its name."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot make this folder ({error.strerror})") from error


def refuse_existing(output: Path) -> None:
    """Refuses a folder that exists and is not empty: a command must not write over files."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"output: {output} exists already; choose another folder")


def is_half_written(path: Path) -> bool:
    """Whether a file is a leftover of a `write_atomically` that was killed."""
    return re.fullmatch(r"\..+\.[0-9]+\.tmp", path.name) is not None


def sync_folder(path: Path) -> None:
    """Waits until the names in a folder are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes or replaces a file, never half of it: temporary file, fsync, rename. Text is UTF-8.

    Raises:
        UserError: the folder is missing or cannot be written to.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{path}: {error.strerror or error}") from error
