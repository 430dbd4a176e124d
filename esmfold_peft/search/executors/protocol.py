"""What every executor offers to the search."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

Handle = dict[str, str | int]
"""What the ledger keeps of a job, so that a search that was killed finds it again."""


@dataclass(frozen=True)
class Job:
    """A trial to be run by `search.attempt.run_attempt`.

    Attributes:
        name: unique in the search, for example lorta_r8_seed0/alpha_2048.
        folder: of the trial, absolute, on a disk that all machines see; it holds trial.yaml.
        devices: GPUs that its training takes; 0 on a CPU.
    """

    name: str
    folder: Path
    devices: int


@runtime_checkable
class Executor(Protocol):
    """Runs trials. The search asks for a job again where one is gone without an outcome."""

    def start(self, jobs: Sequence[Job]) -> list[Handle]:
        """Begins jobs, together where the executor can, and returns at once.

        Raises:
            UserError: one cannot be begun, by a setting.
        """
        ...

    def adopt(self, job: Job, handle: Handle) -> None:
        """Takes over a job that an earlier process of this search has begun, and that may be gone.

        Args:
            job: as it was given to `start`.
            handle: what `start` returned for it.
        """
        ...

    def alive(self, job: Job) -> bool:
        """Whether a job that was started or adopted waits or runs; whatever it came to, else."""
        ...

    def stop(self) -> None:
        """After Ctrl-C: stops what would not outlive the search on purpose, and waits for it."""
        ...
