"""Trials as processes of this machine, which outlive the search if that is killed."""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

from esmfold_peft.errors import UserError
from esmfold_peft.search.executors.protocol import Handle, Job

LOCK = ".attempt"
"""File of a trial that its process holds locked, and that says which one it is."""


class LocalExecutor:
    """Runs each trial in a session of its own; `engine.devices` GPUs each, where there are any.

    A trial is alive as long as its process, or the training below it, holds a lock that both
    inherited: neither a reused process number nor a restart of the search can be mistaken for it.
    """

    def __init__(self) -> None:
        self._slots: dict[str, int] = {}  # of the jobs that were alive when last looked at
        self._jobs: dict[str, Job] = {}
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, job: Job) -> Handle:
        """Begins a job on the lowest GPUs that no other job has."""
        lock = _taken(job.folder)
        if lock is None:
            raise UserError(f"{job.folder}: a process of this trial is running")
        slot = min(set(range(len(self._slots) + 1)) - set(self._slots.values()))
        with lock:
            child = subprocess.Popen(
                [
                    *(sys.executable, "-m", "esmfold_peft.search.attempt"),
                    *(str(job.folder), str(lock.fileno())),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(lock.fileno(),),
                start_new_session=True,
                env=_environment(slot, job.devices),
            )
            lock.truncate(0)
            lock.write(f"{child.pid} {slot}\n")
            lock.flush()
        self._jobs[job.name], self._slots[job.name] = job, slot
        self._children[job.name] = child
        return {"pid": child.pid, "slot": slot}

    def adopt(self, job: Job, handle: Handle) -> None:
        """Takes over a job, if it is alive; what it says of itself is newer than the ledger."""
        if is_alive(job.folder):
            self._jobs[job.name], self._slots[job.name] = job, _said(job.folder)[1]

    def alive(self, job: Job) -> bool:
        """Whether a process of the job is there."""
        if job.name in self._children:
            self._children[job.name].poll()  # leaves no zombie
        if job.name in self._jobs and is_alive(job.folder):
            return True
        for known in (self._jobs, self._slots, self._children):
            known.pop(job.name, None)
        return False

    def stop(self) -> None:
        """Asks all jobs to save themselves and end, and waits for them."""
        for job in list(self._jobs.values()):
            if self.alive(job):
                _terminate(_said(job.folder)[0])
        while any(self.alive(job) for job in list(self._jobs.values())):
            time.sleep(0.1)


def is_alive(folder: Path) -> bool:
    """Whether a process of this trial runs on this machine.

    Args:
        folder: of the trial.
    """
    if not (folder / LOCK).is_file():
        return False
    lock = _taken(folder)
    if lock is None:
        return True
    lock.close()
    return False


def _taken(folder: Path) -> IO[str] | None:
    """The lock of a trial; None where its process has it."""
    file = (folder / LOCK).open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _said(folder: Path) -> tuple[int, int]:
    """Process and slot of a trial; 0 and 0 in the moment in which it begins."""
    words = (folder / LOCK).read_text().split()
    return (int(words[0]), int(words[1])) if len(words) == 2 else (0, 0)


def _terminate(process: int) -> None:
    """Asks a trial's process to stop, or its training where the process itself is gone."""
    if process:
        try:
            os.kill(process, signal.SIGTERM)
        except ProcessLookupError:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process, signal.SIGTERM)


def _environment(slot: int, devices: int) -> dict[str, str]:
    """This process's environment, in which a job sees its own GPUs alone."""
    environment = dict(os.environ)
    if devices:
        visible = environment.get("CUDA_VISIBLE_DEVICES")
        first = slot * devices
        own = [str(k) for k in range(first, first + devices)]
        if visible:
            own = visible.split(",")[first : first + devices]
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(own)
    return environment
