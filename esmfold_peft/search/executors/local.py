"""Trials as processes of this machine, which outlive the search if that is killed.

submitit's own local executor cannot do this: it finds its jobs only in the process that started
them, stops them with Ctrl-C before they have saved, and gives each job the same first GPUs.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from esmfold_peft.disk.locks import is_held, lock_file
from esmfold_peft.errors import UserError
from esmfold_peft.search.attempt import attempt_command
from esmfold_peft.search.executors import Handle, job_name

LOCK = ".attempt"
"""File of a trial that its process holds locked. Its lines: the trial's GPUs, the process."""


class LocalExecutor:
    """Runs each trial in a session of its own, on GPUs of its own.

    A trial is alive as long as its process, or the training below it, holds a lock that both
    inherited. A reused process number or a restarted search cannot be mistaken for it.

    Args:
        gpus: of this machine that trials may take, as CUDA_VISIBLE_DEVICES names them.
        devices: GPUs that a trial takes; 0 on a CPU.
    """

    def __init__(self, gpus: Sequence[str] = (), devices: int = 0) -> None:
        self._gpus, self._devices = tuple(gpus), devices
        self._jobs: dict[Path, subprocess.Popen[bytes] | None] = {}  # None: adopted

    def start(self, folders: Sequence[Path]) -> list[Handle]:
        """Starts each trial on the first GPUs that no other trial has.

        Raises:
            UserError: a process of a trial is running, or too few GPUs are free.
        """
        return [self._start(folder) for folder in folders]

    def _start(self, folder: Path) -> Handle:
        own = self._free_gpus(folder)
        with _lock_of(folder) as lock:
            # Written before the process starts: a search that dies now finds which GPUs it has.
            lock.truncate(0)
            lock.write(",".join(own) + "\n")
            lock.flush()
            child = subprocess.Popen(
                [*attempt_command(folder), str(lock.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(lock.fileno(),),
                start_new_session=True,
                env=os.environ | ({"CUDA_VISIBLE_DEVICES": ",".join(own)} if own else {}),
            )
            lock.write(f"{child.pid}\n")
            lock.flush()
        self._jobs[folder] = child
        return {"pid": child.pid, "gpus": ",".join(own)}

    def adopt(self, folder: Path, handle: Handle) -> None:
        """Takes over a trial if it is alive; its lock file is newer than the handle."""
        if is_alive(folder):
            self._jobs[folder] = None

    def alive(self, folder: Path) -> bool:
        """Whether a process of the trial is there."""
        if child := self._jobs.get(folder):
            child.poll()  # leaves no zombie
        if folder in self._jobs and is_alive(folder):
            return True
        self._jobs.pop(folder, None)
        return False

    def stop(self) -> None:
        """Asks all trials to save themselves and end, and waits for them."""
        for folder in list(self._jobs):
            if self.alive(folder):
                _terminate(_gpus_and_process(folder)[1])
        while any(self.alive(folder) for folder in list(self._jobs)):
            time.sleep(0.1)

    def _free_gpus(self, folder: Path) -> tuple[str, ...]:
        taken = {gpu for job in self._jobs for gpu in _gpus_and_process(job)[0]}
        free = tuple(gpu for gpu in self._gpus if gpu not in taken)
        if len(free) < self._devices:
            raise UserError(
                f"{job_name(folder)}: it needs {self._devices} GPUs, and trials that still run"
                f" leave {len(free)} of {len(self._gpus)}; resume when they have ended"
            )
        return free[: self._devices]


def is_alive(folder: Path) -> bool:
    """Whether a process of this trial runs on this machine.

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
        raise UserError(f"{folder}: a process of this trial is running; wait for it") from error
    return file


def _gpus_and_process(folder: Path) -> tuple[tuple[str, ...], int]:
    """GPUs and process of a trial; process 0 just before it starts."""
    gpus, _, process = (folder / LOCK).read_text().partition("\n")
    return tuple(gpu for gpu in gpus.split(",") if gpu), int(process.strip() or 0)


def _terminate(process: int) -> None:
    """Asks a trial's process to stop, or its training if the process itself is gone."""
    if process:
        try:
            os.kill(process, signal.SIGTERM)
        except ProcessLookupError:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process, signal.SIGTERM)
