"""Trials as processes of this machine, which outlive the search if that is killed."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from esmfold_peft.disk.files import is_held, lock_file
from esmfold_peft.errors import UserError
from esmfold_peft.search.executors.protocol import Handle, Job

LOCK = ".attempt"
"""File of a trial that its process holds locked, and that says which GPUs it has and which one it
is."""


class LocalExecutor:
    """Runs each trial in a session of its own; `engine.devices` GPUs each, where there are any.

    A trial is alive as long as its process, or the training below it, holds a lock that both
    inherited: neither a reused process number nor a restart of the search can be mistaken for it.

    Args:
        gpus: of this machine that trials may take, as CUDA_VISIBLE_DEVICES names them.
    """

    def __init__(self, gpus: Sequence[str] = ()) -> None:
        self._visible = tuple(gpus)
        self._gpus: dict[str, tuple[str, ...]] = {}  # of the jobs that were alive when looked at
        self._jobs: dict[str, Job] = {}
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, jobs: Sequence[Job]) -> list[Handle]:
        """Begins each job on the first GPUs that no other job has.

        Raises:
            UserError: a process of a trial is running, or too few GPUs are free.
        """
        return [self._start(job) for job in jobs]

    def _start(self, job: Job) -> Handle:
        own = self._free_gpus(job)
        with _lock_of(job.folder) as lock:
            # Before the process is there: a search that dies now finds what it has.
            lock.truncate(0)
            lock.write(",".join(own) + "\n")
            lock.flush()
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
                env=os.environ | ({"CUDA_VISIBLE_DEVICES": ",".join(own)} if own else {}),
            )
            lock.write(f"{child.pid}\n")
            lock.flush()
        self._jobs[job.name], self._gpus[job.name] = job, own
        self._children[job.name] = child
        return {"pid": child.pid, "gpus": ",".join(own)}

    def adopt(self, job: Job, handle: Handle) -> None:
        """Takes over a job, if it is alive; what it says of itself is newer than the ledger."""
        if is_alive(job.folder):
            self._jobs[job.name], self._gpus[job.name] = job, _said(job.folder)[0]

    def alive(self, job: Job) -> bool:
        """Whether a process of the job is there."""
        if job.name in self._children:
            self._children[job.name].poll()  # leaves no zombie
        if job.name in self._jobs and is_alive(job.folder):
            return True
        for known in (self._jobs, self._gpus, self._children):
            known.pop(job.name, None)
        return False

    def stop(self) -> None:
        """Asks all jobs to save themselves and end, and waits for them."""
        for job in list(self._jobs.values()):
            if self.alive(job):
                _terminate(_said(job.folder)[1])
        while any(self.alive(job) for job in list(self._jobs.values())):
            time.sleep(0.1)

    def _free_gpus(self, job: Job) -> tuple[str, ...]:
        taken = {gpu for gpus in self._gpus.values() for gpu in gpus}
        free = tuple(gpu for gpu in self._visible if gpu not in taken)
        if len(free) < job.devices:
            raise UserError(
                f"{job.name}: it needs {job.devices} GPUs, and trials that still run leave"
                f" {len(free)} of {len(self._visible)}; go on when they have ended"
            )
        return free[: job.devices]


def is_alive(folder: Path) -> bool:
    """Whether a process of this trial runs on this machine.

    Args:
        folder: of the trial.

    Raises:
        UserError: its lock cannot be read.
    """
    return is_held(folder / LOCK)


def _lock_of(folder: Path) -> IO[str]:
    """The lock of a trial, for the process that is about to begin."""
    file = (folder / LOCK).open("a")
    try:
        lock_file(file)
    except BlockingIOError as error:
        file.close()
        raise UserError(f"{folder}: a process of this trial is running") from error
    return file


def _said(folder: Path) -> tuple[tuple[str, ...], int]:
    """GPUs and process of a trial; process 0 in the moment in which it begins."""
    gpus, _, process = (folder / LOCK).read_text().partition("\n")
    return tuple(gpu for gpu in gpus.split(",") if gpu), int(process.strip() or 0)


def _terminate(process: int) -> None:
    """Asks a trial's process to stop, or its training where the process itself is gone."""
    if process:
        try:
            os.kill(process, signal.SIGTERM)
        except ProcessLookupError:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process, signal.SIGTERM)
