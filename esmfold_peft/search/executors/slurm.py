"""Trials as jobs of a Slurm cluster, submitted through submitit."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from esmfold_peft.config import ExecutorConfig
from esmfold_peft.errors import UserError
from esmfold_peft.search.attempt import start_attended
from esmfold_peft.search.executors import Handle, search_key

_PROGRAMS = ("sbatch", "srun", "squeue", "scontrol")

_DEFAULTS: dict[str, Any] = {"timeout_min": 24 * 60, "slurm_signal_delay_s": 120}
"""submitit's own are 5 minutes, and 90 seconds for a checkpoint before the time limit."""

_UNKNOWN = "?"
"""Number of a job that may or may not have been submitted."""

_MOST_REQUEUES = 1_000_000
"""A trial of weeks meets its time limit often; submitit gives up after three by default."""


class SlurmTrial:
    """What a job does; submitit asks it for a checkpoint before a time limit or preemption."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Runs the trial and returns its exit code."""
        self._process = start_attended(self.folder)
        return self._process.wait()

    def checkpoint(self) -> Any:
        """Has the training save itself and end, and asks for the job to be queued again."""
        from submitit.helpers import DelayedSubmission

        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            # This is called inside `wait` of the same thread. A second `wait` would want its lock,
            # and the first must take the exit code.
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(SlurmTrial(self.folder))


class SlurmExecutor:
    """Runs each trial as a job; those that start together are an array.

    A job that meets its time limit, or is preempted, saves a checkpoint and is queued again.

    Args:
        config: CPUs and the options of the jobs.
        output: folder of the search, absolute.
        devices: GPUs of a trial.

    Raises:
        UserError: submitit or Slurm's programs are missing, or an option is not one of submitit's.
    """

    def __init__(self, config: ExecutorConfig, output: Path, devices: int) -> None:
        try:
            import submitit
        except ImportError as error:
            raise UserError(
                "executor.kind: slurm: submitit is not installed: pip install 'esmfold-peft[slurm]'"
            ) from error
        for program in _PROGRAMS:
            if shutil.which(program) is None:
                raise UserError(
                    f"executor.kind: slurm: there is no {program} on this machine; start the search"
                    " on a machine that submits jobs"
                )
        self._name = f"esmfold_peft_{search_key(output)}"
        options = {"name": self._name, "nodes": 1, "tasks_per_node": 1, **_DEFAULTS}
        options |= {"cpus_per_task": config.cpus, **config.slurm}
        self._ids: dict[Path, str] = {}
        try:
            self._submitit = submitit.AutoExecutor(
                output / "slurm", cluster="slurm", slurm_max_num_timeout=_MOST_REQUEUES
            )
            self._submitit.update_parameters(**options)
            if devices:
                self._submitit.update_parameters(gpus_per_node=devices)
        except (NameError, TypeError, ValueError, AssertionError) as error:
            raise UserError(f"executor.slurm: {' '.join(str(error).split())}") from error

    def start(self, folders: Sequence[Path]) -> list[Handle]:
        """Submits trials, as one array where there are several.

        Raises:
            UserError: sbatch has refused them.
        """
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        try:
            with self._submitit.batch():
                submitted = [self._submitit.submit(SlurmTrial(str(folder))) for folder in folders]
            ids = [str(each.job_id) for each in submitted]
        except (FailedJobError, FailedSubmissionError) as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            raise UserError(f"executor.slurm: sbatch: {lines[-1].strip()}") from error
        self._ids |= dict(zip(folders, ids, strict=True))
        return [{"job_id": number} for number in ids]

    def adopt(self, folder: Path, handle: Handle) -> None:
        """Takes over a job by its number.

        A search that was killed while it submitted does not know the number. As long as the queue
        has unknown jobs of this search, one of them may be this job.
        """
        self._ids[folder] = str(handle.get("job_id", _UNKNOWN))

    def alive(self, folder: Path) -> bool:
        """Whether Slurm's queue has the job, waiting or running."""
        number = self._ids.get(folder)
        if number is None:
            return False
        by = f"--name={self._name}" if number == _UNKNOWN else f"--jobs={number}"
        command = ["squeue", "--noheader", "--array", "--format=%i", by]
        found = subprocess.run(command, capture_output=True, text=True)
        if found.returncode == 0:
            known = set(self._ids.values()) if number == _UNKNOWN else ()
            return any(each not in known for each in found.stdout.split())
        # A number that Slurm has forgotten is invalid; other errors are its controller's, for now.
        return "Invalid job id" not in found.stderr

    def stop(self) -> None:
        """Leaves the jobs alone."""
