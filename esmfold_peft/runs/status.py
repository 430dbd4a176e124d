"""How a run stands or has ended: status.json in its folder, and the exit code that goes with it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from esmfold_peft.config import TrainConfig
from esmfold_peft.config.parsing import config_of
from esmfold_peft.console import report
from esmfold_peft.disk.files import read_json, write_atomically
from esmfold_peft.errors import UserError
from esmfold_peft.runs.checkpoint import Best

STATUS = "status.json"

Name = Literal["running", "converged", "diverged", "plateau", "interrupted", "failed"]

EXIT_CODES: dict[Name, int] = {
    "converged": 0,
    "plateau": 0,  # slow to learn is no failure
    "diverged": 3,
    "interrupted": 75,  # EX_TEMPFAIL of sysexits.h: the same command goes on
}


@dataclass(frozen=True)
class Status:
    """How a run stands.

    Attributes:
        status: running (or killed since), converged (all steps are done), diverged, plateau (all
            steps are done, and little was learnt), interrupted (it can go on), or failed (it ended
            by an error).
        step: optimizer steps done.
        steps: that the run is to have.
        rule: of the divergence guard that has fired.
        since: step from which on its condition held.
        message: why the run ended so.
        skipped_steps: left out because their gradient was not finite.
        validation: mean lDDT-Cα of the newest validation, 0 to 1.
        best: the best validation.
    """

    status: Name
    step: int
    steps: int
    rule: str | None = None
    since: int | None = None
    message: str | None = None
    skipped_steps: int = 0
    validation: float | None = None
    best: Best | None = None

    def sentence(self) -> str:
        """One line for a person."""
        more = self.step > self.steps  # engine.steps was lowered for a resume
        of = f", more than engine.steps {self.steps:,}" if more else f" of {self.steps:,}"
        said = f"{self.status} at step {self.step:,}{of}"
        if self.message:
            said += f": {self.message}"
        if self.skipped_steps:
            said += f"; {self.skipped_steps:,} steps were left out"
        if self.best is not None:
            said += f"; best validation lDDT-Cα {self.best.score:.3f} at step {self.best.step:,}"
        if self.status == "interrupted":
            said += "; the same command with --resume auto goes on"
        return said


def write_status(run: Path, status: Status) -> None:
    """Writes status.json."""
    write_atomically(run / STATUS, json.dumps(asdict(status), indent=2) + "\n")


def ended_status(config: TrainConfig) -> Status | None:
    """How a run has ended that is not to be gone on with, and says so; None if it is.

    Args:
        config: of the command that would go on.
    """
    try:
        status = read_status(config.run)
    except UserError as error:  # the checkpoint says where the run stands
        report(f"{error}; it is written anew")
        return None
    if status is None or (status.status != "diverged" and status.step < config.engine.steps):
        return None
    if status.status not in ("converged", "plateau", "diverged"):
        return None
    report(f"run {config.run} has ended before: {status.sentence()}")
    return status


def read_status(run: Path) -> Status | None:
    """Reads status.json; None where a run has none yet.

    Raises:
        UserError: it cannot be read.
    """
    path = run / STATUS
    if not path.is_file():
        return None
    return config_of(read_json(path), Status, path)


def whole_status(run: Path) -> Status | None:
    """As `read_status`; None also where it is damaged, which the next resume mends."""
    try:
        return read_status(run)
    except UserError:
        return None
