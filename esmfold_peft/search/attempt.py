"""One attempt at a trial: `train --resume auto` in a process of its own.

A trial's folder:

trial.yaml       the settings of its training
attempts.jsonl   when each attempt began and ended, and its exit code
train.log        what the training printed
run/             the training's own folder

Every executor runs this module: `python -m esmfold_peft.search.attempt FOLDER`. More arguments: the
word `attended` stops the attempt when its standard input ends, which means that its parent is gone;
numbers are file descriptors that the training inherits.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from esmfold_peft.disk.journal import Journal, whole_lines

SETTINGS = "trial.yaml"
ATTEMPTS = "attempts.jsonl"
LOG = "train.log"
RUN = "run"

_PR_SET_PDEATHSIG = 1  # of linux/prctl.h

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


@dataclass(frozen=True)
class Attempt:
    """When an attempt began and ended (seconds since 1970), and its exit code.

    No exit code: it runs or was killed. The end of a killed attempt is the time of its last file,
    which the next attempt writes down.
    """

    began: float
    ended: float | None = None
    code: int | None = None


def attempt_command(folder: Path | str) -> list[str]:
    """The command line that runs this module for a trial."""
    return [sys.executable, "-m", "esmfold_peft.search.attempt", str(folder)]


def start_attended(folder: str) -> subprocess.Popen[bytes]:
    """Starts an attempt that ends with this process, for an executor on another machine.

    In a session of its own it does not get the cluster's signals to this process, and can save.
    """
    command = [*attempt_command(folder), "attended"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


def run_attempt(folder: Path, keep_open: tuple[int, ...] = (), *, attended: bool = False) -> int:
    """Starts or resumes a trial's training, and returns its exit code.

    Signals that ask to stop are passed on to the training, which saves itself.
    """
    # This attempt overwrites the files of one that was killed: keep their time.
    journal = Journal(folder / ATTEMPTS)
    journal.add({"began": time.time(), "before": last_sign(folder)})
    command = [sys.executable, "-m", "esmfold_peft", "train", "--config", str(folder / SETTINGS)]
    with (folder / LOG).open("ab") as log:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=keep_open,
            preexec_fn=_stop_with_parent if attended else None,
        )
    for number in _SIGNALS:
        signal.signal(number, lambda *_: child.terminate())
    if attended:
        threading.Thread(target=_stop_at_end_of_input, args=(child,), daemon=True).start()
    code = child.wait()
    journal.add({"ended": time.time(), "code": code})
    return code


def _stop_with_parent() -> None:
    """Has Linux send SIGTERM to this process when its parent is gone, even by SIGKILL.

    Ray kills the children of an actor that is lost, but not their children.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _stop_at_end_of_input(child: subprocess.Popen[bytes]) -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    child.terminate()


def attempts(folder: Path) -> list[Attempt]:
    """All attempts at a trial, in order. A line that a kill has cut is skipped."""
    found: list[Attempt] = []
    for line in whole_lines(folder / ATTEMPTS):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if "began" in entry:
            if found and found[-1].ended is None:
                ended = max(found[-1].began, entry.get("before") or 0.0)
                found[-1] = Attempt(found[-1].began, ended)
            found.append(Attempt(entry["began"]))
        elif found:
            found[-1] = Attempt(found[-1].began, entry["ended"], entry["code"])
    return found


def last_sign(folder: Path) -> float | None:
    """When a trial's training last wrote a file, in seconds since 1970; None if it never has."""
    # A hidden file is half written, and may be gone before it is looked at.
    files = [folder / LOG, *(folder / RUN).glob("[!.]*")]
    return max((file.stat().st_mtime for file in files if file.is_file()), default=None)


def last_words(folder: Path) -> str:
    """The last line that a trial's training has printed; "" if there is none."""
    path = folder / LOG
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        lines = file.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


if __name__ == "__main__":
    words = sys.argv[2:]
    descriptors = tuple(int(word) for word in words if word.isdecimal())
    sys.exit(run_attempt(Path(sys.argv[1]), descriptors, attended="attended" in words))
