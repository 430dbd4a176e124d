"""Locks of folders and files: one process writes at a time."""

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from esmfold_peft.errors import BusyError, UserError

LOCK = ".lock"
"""File of a folder that one process writes to (`lock_folder`)."""

_LOOK_SECONDS = 0.5
"""A process that only looks whether a lock is held (`is_held`) holds it for less time."""


def lock_folder(path: Path) -> IO[str]:
    """Locks a folder for this process, until it closes the returned file or ends.

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


def lock_file(file: IO[Any]) -> None:
    """Locks a file that is open for writing, until it is closed everywhere.

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


def unlock_file(file: IO[Any]) -> None:
    """Gives up the lock of a file, if it has one."""
    with suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_UN)


def is_held(path: Path) -> bool:
    """Whether a process holds the lock of a file, which need not exist; read access is enough.

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
