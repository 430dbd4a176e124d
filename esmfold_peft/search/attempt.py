"""One attempt at a trial: `train --resume auto` in a process of its own, and what is known of it.

A trial's folder:

trial.yaml       the settings of its training
attempts.jsonl   when each attempt began and ended, and its exit code
train.log        what the training said
run/             the training's own folder

This module is what a job of any executor runs: `python -m esmfold_peft.search.attempt FOLDER`.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

SETTINGS = "trial.yaml"
ATTEMPTS = "attempts.jsonl"
LOG = "train.log"

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


def run_attempt(folder: Path, keep_open: tuple[int, ...] = ()) -> int:
    """Begins a trial or goes on with it, and returns the training's exit code.

    Signals that ask to stop are passed on to the training, which saves itself.

    Args:
        folder: of the trial.
        keep_open: file descriptors that the training inherits.
    """
    note(folder, {"began": time.time()})
    command = [sys.executable, "-m", "esmfold_peft", "train", "--config", str(folder / SETTINGS)]
    with (folder / LOG).open("ab") as log:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=keep_open
        )
        if _in_main_thread():
            for number in _SIGNALS:
                signal.signal(number, lambda *_: child.terminate())
        code = child.wait()
    note(folder, {"ended": time.time(), "code": code})
    return code


def note(folder: Path, entry: dict[str, float]) -> None:
    """Adds a line to attempts.jsonl, which is on the disk when this returns."""
    with (folder / ATTEMPTS).open("ab") as file:
        file.write(json.dumps(entry).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _in_main_thread() -> bool:
    import threading

    return threading.current_thread() is threading.main_thread()


if __name__ == "__main__":
    sys.exit(run_attempt(Path(sys.argv[1]), tuple(map(int, sys.argv[2:]))))
