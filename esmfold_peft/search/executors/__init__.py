"""What runs the trials of a search: this machine, a Ray cluster, or Slurm."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

Handle = dict[str, str | int]
"""What the ledger keeps of a trial's job, so that a search that was killed finds it again."""


@runtime_checkable
class Executor(Protocol):
    """Runs trials by `search.attempt`; each is named by its folder, which holds trial.yaml.

    Folders are absolute, on a disk that all machines see. The search starts a trial again if its
    job is gone without an outcome.
    """

    def start(self, folders: Sequence[Path]) -> list[Handle]:
        """Starts trials, together where the executor can, and returns at once.

        Raises:
            UserError: one cannot be started; the setting at fault is named.
        """
        ...

    def adopt(self, folder: Path, handle: Handle) -> None:
        """Takes over a job that an earlier process of this search has started; it may be gone."""
        ...

    def alive(self, folder: Path) -> bool:
        """Whether the job of a trial that was started or adopted waits or runs."""
        ...

    def stop(self) -> None:
        """After Ctrl-C: stops the jobs that must not outlive the search, and waits for them."""
        ...


def job_name(folder: Path) -> str:
    """Name of a trial's job, unique in the search: lorta_r8_seed0/alpha_2048."""
    return f"{folder.parent.name}/{folder.name}"


def search_key(output: Path) -> str:
    """A word that is different for each search's folder, for the names of its jobs."""
    return hashlib.sha256(str(output).encode()).hexdigest()[:12]
