"""Append-only files of JSON lines, which stay readable after a kill at any moment."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from esmfold_peft.disk.locks import lock_file, unlock_file
from esmfold_peft.errors import BusyError, UserError


class Journal:
    """Adds lines to a file; the half line that a kill may have left is dropped first.

    Only one process may add. With `lock`, the journal makes sure of that.

    Raises:
        BusyError: another process has the lock.
        UserError: the file cannot be written or locked.
    """

    def __init__(self, path: Path, *, lock: bool = False) -> None:
        try:
            self._file = path.open("a+b")
            if lock:
                lock_file(self._file)
            self._file.seek(0)
            self._file.truncate(self._file.read().rfind(b"\n") + 1)
        except BlockingIOError as error:
            raise BusyError(f"{path}: another process writes to this file") from error
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from error

    def add(self, entry: Mapping[str, object]) -> None:
        """Adds a line; it is on the disk when this returns. A UserError if the disk fails."""
        try:
            self._file.write(json.dumps(entry).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise UserError(f"{self._file.name}: {error.strerror}") from error

    def close(self) -> None:
        """Gives up the lock, also where a forked process still has the file open."""
        unlock_file(self._file)
        self._file.close()


def whole_lines(path: Path) -> list[bytes]:
    """The lines of a journal without a half line at its end; none where there is no file."""
    try:
        return path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
