"""Trials as jobs of a Slurm cluster, submitted through submitit."""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from esmfold_peft.config import ExecutorConfig
from esmfold_peft.errors import UserError
from esmfold_peft.search.executors.protocol import Handle, Job

_PROGRAMS = ("sbatch", "srun", "squeue", "scontrol")

_DEFAULTS: dict[str, Any] = {"timeout_min": 24 * 60, "slurm_signal_delay_s": 120}
"""submitit's own are 5 minutes, and 90 seconds for a checkpoint before the time limit."""

_UNKNOWN = "?"
"""Number of a job of which it is not known whether it was submitted."""

_MOST_REQUEUES = 1_000_000
"""A trial of weeks meets its time limit often; submitit gives up after three by default."""


class SlurmTrial:
    """What a job does; submitit asks it for a checkpoint before a time limit or preemption.

    Args:
        folder: of the trial.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Runs the trial and returns its exit code."""
        command = [sys.executable, "-m", "esmfold_peft.search.attempt", self.folder, "attended"]
        # Of Slurm's signals submitit makes a call of `checkpoint`; the training, in a session of
        # its own, must not get them as well.
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        return self._process.wait()

    def checkpoint(self) -> Any:
        """Has the training save itself and end, and asks for the job to be queued again."""
        from submitit.helpers import DelayedSubmission

        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            # This is called inside `wait` of the same thread, whose lock a second `wait` would
            # want; the first one is left to take the exit code.
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(SlurmTrial(self.folder))


class SlurmExecutor:
    """Runs each trial as a job; those that are begun together are an array.

    A job that meets its time limit, or is preempted, saves a checkpoint and is queued again. All
    nodes see the search's folder under the same path.

    Args:
        config: CPUs and the options of the jobs.
        output: folder of the search, absolute.

    Raises:
        UserError: submitit or Slurm's programs are missing, or an option is not one of submitit's.
    """

    def __init__(self, config: ExecutorConfig, output: Path) -> None:
        try:
            import submitit
        except ImportError as error:
            raise UserError(
                "executor.kind: slurm: submitit is not installed: pip install 'esmfold-peft[slurm]'"
            ) from error
        for program in _PROGRAMS:
            if shutil.which(program) is None:
                raise UserError(f"executor.kind: slurm: there is no {program} on this machine")
        self._name = f"esmfold_peft_{hashlib.sha256(str(output).encode()).hexdigest()[:12]}"
        options = {"name": self._name, "nodes": 1, "tasks_per_node": 1, **_DEFAULTS}
        options |= {"cpus_per_task": config.cpus, **config.slurm}
        self._ids: dict[str, str] = {}
        try:
            self._submitit = submitit.AutoExecutor(
                output / "slurm", cluster="slurm", slurm_max_num_timeout=_MOST_REQUEUES
            )
            self._submitit.update_parameters(**options)
        except (NameError, TypeError, ValueError, AssertionError) as error:
            raise UserError(f"executor.slurm: {' '.join(str(error).split())}") from error

    def start(self, jobs: Sequence[Job]) -> list[Handle]:
        """Submits jobs, as one array where there are several.

        Raises:
            UserError: sbatch has refused them.
        """
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        if jobs[0].devices:  # all trials of a search take as many
            self._submitit.update_parameters(gpus_per_node=jobs[0].devices)
        try:
            with self._submitit.batch():
                begun = [self._submitit.submit(SlurmTrial(str(job.folder))) for job in jobs]
            ids = [str(each.job_id) for each in begun]
        except (FailedJobError, FailedSubmissionError) as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            raise UserError(f"executor.slurm: sbatch: {lines[-1].strip()}") from error
        self._ids |= {job.name: number for job, number in zip(jobs, ids, strict=True)}
        return [{"job_id": number} for number in ids]

    def adopt(self, job: Job, handle: Handle) -> None:
        """Takes over a job by its number.

        A search that was killed while it submitted does not know whether it has: as long as this
        search has jobs in the queue that nobody knows, it is one of them.
        """
        self._ids[job.name] = str(handle.get("job_id", _UNKNOWN))

    def alive(self, job: Job) -> bool:
        """Whether Slurm's queue has the job, waiting or running."""
        number = self._ids.get(job.name)
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
