"""Trials as actors of a Ray cluster, which outlive the search."""

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from esmfold_peft.config import ExecutorConfig
from esmfold_peft.errors import UserError
from esmfold_peft.search.attempt import start_attended
from esmfold_peft.search.executors import Handle, job_name, search_key

NAMESPACE = "esmfold_peft"

_ANSWER_SECONDS = 10.0
"""An actor that does not answer for so long waits for its resources, or its node is slow."""


class RayTrial:
    """Runs a trial as a process of its own, which saves itself and ends if this actor is lost."""

    def __init__(self, folder: str) -> None:
        self._child: subprocess.Popen[bytes] = start_attended(folder)

    def busy(self) -> bool:
        """Whether the trial still runs."""
        return self._child.poll() is None


class RayExecutor:
    """Runs each trial in a detached actor, whose name a search that was restarted finds again.

    A trial whose node is lost is started on another, and resumes from its newest checkpoint. If Ray
    is not running, it starts on this machine, and its trials end with the search.

    Args:
        config: address, CPUs and GPUs.
        output: folder of the search, absolute.
        devices: GPUs of a trial where `config` has none.

    Raises:
        UserError: Ray is not installed, or the cluster cannot be reached.
    """

    def __init__(self, config: ExecutorConfig, output: Path, devices: int) -> None:
        try:
            import ray
        except ImportError as error:
            raise UserError(
                "executor.kind: ray: Ray is not installed: pip install 'esmfold-peft[ray]'"
            ) from error
        self._ray: Any = ray
        self._resources = {
            "num_cpus": config.cpus,
            "num_gpus": devices if config.gpus is None else config.gpus,
        }
        self._search = search_key(output)
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
            raise UserError(f"executor.address: {config.address}: {_reason(error)}") from error

    def start(self, folders: Sequence[Path]) -> list[Handle]:
        """Asks the cluster for an actor for each trial, which begins when there is room."""
        return [self._start(folder) for folder in folders]

    def _start(self, folder: Path) -> Handle:
        name = self._name(folder)
        actor = self._ray.remote(RayTrial).options(
            name=name, namespace=NAMESPACE, lifetime="detached", **self._resources
        )
        try:
            actor.remote(str(folder))
        except ValueError as error:
            # The actor may be there already: it seemed lost while the network was down.
            if self._actor(folder) is None:
                raise UserError(f"executor: ray: {_reason(error)}") from error
        return {"actor": name}

    def adopt(self, folder: Path, handle: Handle) -> None:
        """Does nothing: an actor is found by its name."""

    def alive(self, folder: Path) -> bool:
        """Whether the trial's actor waits or runs; one that has ended gives back its resources."""
        actor, errors = self._actor(folder), self._ray.exceptions
        if actor is None:
            return False
        try:
            if self._ray.get(actor.busy.remote(), timeout=_ANSWER_SECONDS):
                return True
        except (errors.GetTimeoutError, errors.ActorUnavailableError):  # for now
            return True
        except errors.RayActorError:
            return False
        self._ray.kill(actor)
        return False

    def stop(self) -> None:
        """Leaves the trials of a cluster alone."""

    def _actor(self, folder: Path) -> Any:
        """The trial's actor; None where the cluster has none."""
        try:
            return self._ray.get_actor(self._name(folder), namespace=NAMESPACE)
        except ValueError:
            return None

    def _name(self, folder: Path) -> str:
        return f"{self._search}/{job_name(folder)}"


def _reason(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
