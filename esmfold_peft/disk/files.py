"""Whole files: reading, plain or gzip-compressed, and writing that leaves no half of one."""

import fcntl
import gzip
import io
import json
import os
import time
import zlib
from pathlib import Path
from typing import IO, Any

from esmfold_peft.errors import BusyError, UserError

LOCK = ".lock"
"""File of a folder that one process writes to (`lock_folder`)."""

_LOOK_SECONDS = 0.5
"""For so long nobody holds a lock who only looks whether it is held."""

_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_RATIO = 1032
"""Deflate makes nothing smaller than this many times."""
_MOST_BYTES = 4 << 30


def read_bytes(path: Path) -> bytes:
    """Reads a whole file and decompresses it if its content, not its name, says gzip.

    Args:
        path: of a file that must not be empty.

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
    """The content of a file, decompressed if it says gzip.

    Args:
        data: what must not be empty.
        place: where it comes from, for the message.

    Raises:
        UserError: there is nothing, or a gzip file that is damaged or would expand to more than
            4 GiB.
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
    """Whether a gzip file holds more than fits; what is decompressed is counted, not kept."""
    if len(data) * _GZIP_RATIO <= _MOST_BYTES:
        return False
    with gzip.open(io.BytesIO(data)) as stream:
        return stream.seek(_MOST_BYTES + 1) > _MOST_BYTES


def require_file(path: Path, what: str = "") -> None:
    """Refuses a path where nothing is, or that cannot even be looked at.

    Args:
        path: file or folder.
        what: it should be, for the message.

    Raises:
        UserError: there is nothing.
    """
    place = f"{what}: {path}" if what else f"{path}:"
    try:
        found = path.exists()
    except OSError as error:  # a name that is too long, for example
        raise UserError(f"{place} cannot be read ({error.strerror})") from error
    if not found:
        raise UserError(f"{place} does not exist")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    try:
        content = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object")
    return content


def make_folder(path: Path) -> None:
    """Makes a folder and those above it where they are missing.

    Raises:
        UserError: it cannot be made, or a file has its name.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot make this folder ({error.strerror})") from error


def refuse_existing(output: Path) -> None:
    """Checks that a command would not write over something else.

    Raises:
        UserError: the folder exists and is not empty.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"output: {output} exists already; choose another folder")


def lock_folder(path: Path) -> IO[str]:
    """Takes a folder for this process, until the file that is returned is closed or it ends.

    Args:
        path: folder that exists.

    Raises:
        BusyError: another process has it.
        UserError: it cannot be locked.
    """
    try:
        file = (path / LOCK).open("w")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    try:
        lock_file(file)
    except BlockingIOError as error:
        file.close()
        raise BusyError(f"{path}: another process writes to this folder") from error
    except OSError as error:  # some network disks have no locks
        file.close()
        raise UserError(f"{path}: cannot be locked ({error.strerror})") from error
    # Workers that outlive a killed process for some seconds must not keep the folder.
    os.register_at_fork(after_in_child=file.close)
    return file


def is_half_written(path: Path) -> bool:
    """Whether a file is what a kill has left of `write_atomically`."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def lock_file(file: IO[str]) -> None:
    """Takes the lock of a file that is open for writing, until it is closed everywhere.

    Raises:
        BlockingIOError: a process holds it, and does not only look (`is_held`).
        OSError: some network disks have no locks.
    """
    deadline = time.monotonic() + _LOOK_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


def is_held(path: Path) -> bool:
    """Whether a process holds the lock of a file; anybody who may read it may ask.

    Args:
        path: of the file, which need not exist.

    Raises:
        UserError: it cannot be read, or the disk has no locks.
    """
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    return False


def sync_folder(path: Path) -> None:
    """Waits until the names in a folder are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file so that its name never stands for half of it: temporary file, fsync, rename.

    Args:
        path: the file, in a folder that exists; replaced if it exists.
        content: bytes, or text that is written as UTF-8.

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
