"""Trials as actors of a Ray cluster, which outlive the search."""

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from esmfold_peft.config import ExecutorConfig
from esmfold_peft.errors import UserError
from esmfold_peft.search.executors.protocol import Handle, Job

NAMESPACE = "esmfold_peft"

_ANSWER_SECONDS = 10.0
"""An actor that does not answer for so long waits for its resources, or its node is slow."""


class Trial:
    """Runs a trial as a process of its own, which saves itself and ends if this actor is lost.

    Args:
        folder: of the trial.
    """

    def __init__(self, folder: str) -> None:
        command = [sys.executable, "-m", "esmfold_peft.search.attempt", folder, "attended"]
        # Ray ends the processes of an actor with it; in a session of its own this one can save.
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    def busy(self) -> bool:
        """Whether the trial still runs."""
        return self._child.poll() is None


class RayExecutor:
    """Runs each trial in a detached actor, whose name a search that was restarted finds again.

    A trial whose node is lost is begun again on another and goes on from its newest checkpoint; all
    nodes see the search's folder under the same path. Where Ray was not running, it is started on
    this machine, and its trials end with the search.

    Args:
        config: address, CPUs and GPUs.
        output: folder of the search, absolute.

    Raises:
        UserError: Ray is not installed, or the cluster cannot be reached.
    """

    def __init__(self, config: ExecutorConfig, output: Path) -> None:
        try:
            import ray
        except ImportError as error:
            raise UserError(
                "executor.kind: ray: Ray is not installed: pip install 'esmfold-peft[ray]'"
            ) from error
        self._ray: Any = ray
        self._config = config
        self._prefix = hashlib.sha256(str(output).encode()).hexdigest()[:12]
        if ray.is_initialized():
            return
        try:
            ray.init(
                address=config.address,
                namespace=NAMESPACE,
                include_dashboard=False,
                log_to_driver=False,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"executor.address: {config.address}: {reason}") from error

    def start(self, jobs: Sequence[Job]) -> list[Handle]:
        """Asks the cluster for an actor for each job, which begins when there is room."""
        return [self._start(job) for job in jobs]

    def _start(self, job: Job) -> Handle:
        gpus = job.devices if self._config.gpus is None else self._config.gpus
        actor = self._ray.remote(Trial).options(
            name=self._name(job),
            namespace=NAMESPACE,
            lifetime="detached",
            num_cpus=self._config.cpus,
            num_gpus=gpus,
        )
        try:
            actor.remote(str(job.folder))
        except ValueError as error:
            # A network that was down has made it seem lost.
            if self._actor(job) is None:
                reason = str(error).strip().partition("\n")[0]
                raise UserError(f"executor: ray: {reason}") from error
        return {"actor": self._name(job)}

    def adopt(self, job: Job, handle: Handle) -> None:
        """Does nothing: an actor is found by its name."""

    def alive(self, job: Job) -> bool:
        """Whether the job's actor waits or runs; one that has ended gives back what it had."""
        actor = self._actor(job)
        if actor is None:
            return False
        gone_for_now = (
            self._ray.exceptions.GetTimeoutError,
            self._ray.exceptions.ActorUnavailableError,
        )
        try:
            if self._ray.get(actor.busy.remote(), timeout=_ANSWER_SECONDS):
                return True
        except gone_for_now:
            return True
        except self._ray.exceptions.RayActorError:
            return False
        self._ray.kill(actor)
        return False

    def stop(self) -> None:
        """Leaves the trials of a cluster alone."""

    def _actor(self, job: Job) -> Any:
        """The job's actor; None where the cluster has none."""
        try:
            return self._ray.get_actor(self._name(job), namespace=NAMESPACE)
        except ValueError:
            return None

    def _name(self, job: Job) -> str:
        return f"{self._prefix}/{job.name}"
