"""What a trial's folder says of it: its outcome, its scores, and why it came to nothing."""

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from esmfold_peft.config import LadderConfig
from esmfold_peft.errors import BusyError, UserError
from esmfold_peft.search.attempt import RUN, attempts, last_words
from esmfold_peft.search.ladder import Outcome, Trial
from esmfold_peft.training.metrics_file import METRICS
from esmfold_peft.training.status import EXIT_CODES, Status, whole_status

COLUMNS = {"ema": "validation/lddt_ca", "raw": "validation/lddt_ca_raw"}


@dataclass(frozen=True)
class Ended:
    """A trial has ended.

    Attributes:
        outcome: what the ladder reads.
        status: what its training wrote at the end.
    """

    outcome: Outcome
    status: Status


@dataclass(frozen=True)
class Lost:
    """An attempt came to nothing.

    Attributes:
        reason: one line.
        hopeless: the same would come of it again.
        busy: an earlier process of the trial had not ended yet, so that this one could not begin.
    """

    reason: str
    hopeless: bool = False
    busy: bool = False


def read_end(folder: Path, trial: Trial, config: LadderConfig) -> Ended | None:
    """How a trial has ended; None where it has not.

    Args:
        folder: of the trial.
        trial: with the steps that were asked for.
        config: metric and selection.
    """
    status = whole_status(folder / RUN)
    if status is None:
        return None
    if status.status == "diverged":
        return Ended(Outcome("diverged", trial_score(folder, trial.steps, config)), status)
    if status.status in ("converged", "plateau") and status.step >= trial.steps:
        ending = "converged" if status.status == "converged" else "plateau"
        return Ended(Outcome(ending, trial_score(folder, trial.steps, config)), status)
    return None


def why_lost(folder: Path, earlier: int = 0) -> Lost:
    """Why a trial's process is gone without an outcome.

    Args:
        folder: of the trial.
        earlier: attempts that there were before; what became of them does not count.
    """
    known = attempts(folder)[earlier:]
    if not known:
        return Lost("it was gone before it began")
    code, said = known[-1].code, last_words(folder)
    if code is None:
        return Lost("its process was killed")
    if code == EXIT_CODES["interrupted"]:
        return Lost("it was asked to stop")
    if code == BusyError.exit_code:
        return Lost(said, busy=True)
    if code == UserError.exit_code:
        return Lost(said or f"exit code {code}", hopeless=not _has_trained(folder, known[-1].began))
    return Lost(f"exit code {code}" + (f": {said}" if said else ""))


def _has_trained(folder: Path, since: float) -> bool:
    """Whether training has begun: wrong settings end it before, a full disk or a lost GPU later."""
    metrics = folder / RUN / METRICS
    return metrics.is_file() and metrics.stat().st_mtime >= since


def trial_score(folder: Path, steps: int, config: LadderConfig) -> float | None:
    """Validation lDDT-Cα of a trial by the ladder's metric; None if there is none.

    Args:
        folder: of the trial.
        steps: later validations do not count.
        config: metric and selection.
    """
    values = [v for step, v in column(folder, COLUMNS[config.metric]) if step <= steps]
    if not values:
        return None
    return max(values) if config.select == "best" else values[-1]


def column(folder: Path, name: str) -> list[tuple[int, float]]:
    """Step and value of a column of a trial's metrics.csv, without what is empty or not finite."""
    return list(_column(folder / RUN / METRICS, name))


def _column(path: Path, name: str) -> Iterator[tuple[int, float]]:
    if not path.is_file():
        return
    # What follows the last line break is being written.
    lines = path.read_text(errors="replace").split("\n")[:-1]
    for row in csv.DictReader(lines):
        try:
            step, value = int(row["step"]), float(row.get(name) or "nan")
        except (TypeError, ValueError):
            continue
        if math.isfinite(value):
            yield step, value
