"""Files of JSON lines that are only added to, which a kill at any moment leaves readable."""

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path

from esmfold_peft.errors import BusyError, UserError


class Journal:
    """Adds lines to a file; half of a line that a kill has left is dropped first.

    Args:
        path: the file, which one process at a time adds to.
        lock: take it for this process, where nothing else has made sure of that.

    Raises:
        BusyError: another process has it.
        UserError: it cannot be written or locked.
    """

    def __init__(self, path: Path, *, lock: bool = False) -> None:
        try:
            self._file = path.open("a+b")
            if lock:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._file.seek(0)
            self._file.truncate(self._file.read().rfind(b"\n") + 1)
        except BlockingIOError as error:
            raise BusyError(f"{path}: another process writes to this file") from error
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from error

    def add(self, entry: Mapping[str, object]) -> None:
        """Adds a line; it is on the disk when this returns.

        Args:
            entry: as JSON takes it.

        Raises:
            UserError: the disk is full, or gone.
        """
        try:
            self._file.write(json.dumps(entry).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise UserError(f"{self._file.name}: {error.strerror}") from error


def whole_lines(path: Path) -> list[bytes]:
    """The lines of a journal without half of one at its end; none where there is no file."""
    try:
        return path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
