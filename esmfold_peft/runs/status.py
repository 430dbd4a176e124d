"""How a run stands or has ended: status.json in its folder, and the exit code."""

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
    "plateau": 0,  # slow to learn is not a failure
    "diverged": 3,
    "interrupted": 75,  # EX_TEMPFAIL of sysexits.h: the same command resumes
}


@dataclass(frozen=True)
class Status:
    """How a run stands.

    Attributes:
        status: running (or killed since), converged (all steps are done), diverged, plateau (all
            steps are done, but little was learnt), interrupted (it can be resumed), or failed (an
            error has ended it).
        step: optimizer steps done.
        steps: optimizer steps that the settings ask for.
        rule: of the divergence guard that has fired.
        since: step from which on its condition held.
        message: why the run has ended.
        skipped_steps: skipped because their gradient was not finite.
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
        text = f"{self.status} at step {self.step:,}{of}"
        if self.message:
            text += f": {self.message}"
        if self.skipped_steps:
            text += f"; {self.skipped_steps:,} steps were skipped"
        if self.best is not None:
            text += f"; best validation lDDT-Cα {self.best.score:.3f} at step {self.best.step:,}"
        if self.status == "interrupted":
            text += "; the same command with --resume auto resumes it"
        return text


def write_status(run: Path, status: Status) -> None:
    """Writes status.json."""
    write_atomically(run / STATUS, json.dumps(asdict(status), indent=2) + "\n")


def ended_status(config: TrainConfig) -> Status | None:
    """How a run has ended for good, which is reported; None if the command can resume it."""
    try:
        status = read_status(config.run)
    except UserError as error:  # the checkpoint tells where the run stands
        report(f"{error}; writing a new one")
        return None
    if status is None or status.status not in ("converged", "plateau", "diverged"):
        return None
    if status.status != "diverged" and status.step < config.engine.steps:
        return None
    report(f"run {config.run} has ended before: {status.sentence()}")
    return status


def read_status(run: Path) -> Status | None:
    """Reads status.json; None if a run has none yet, a UserError if it is damaged."""
    path = run / STATUS
    return config_of(read_json(path), Status, path) if path.is_file() else None


def whole_status(run: Path) -> Status | None:
    """As `read_status`; None also where it is damaged, which the next resume repairs."""
    try:
        return read_status(run)
    except UserError:
        return None
