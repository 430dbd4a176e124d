"""What a trial's folder says of it: its outcome, its scores, and why it came to nothing."""

import csv
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from esmfold_peft.config import LadderConfig
from esmfold_peft.errors import BusyError, UserError
from esmfold_peft.runs.status import EXIT_CODES, Status, whole_status
from esmfold_peft.search.attempt import RUN, attempts, last_words
from esmfold_peft.search.ladder import Outcome, Trial
from esmfold_peft.training.metrics_file import METRICS
from esmfold_peft.training.validation import VALIDATION

COLUMNS = {"ema": "validation/lddt_ca", "raw": "validation/lddt_ca_raw"}

LAST_LINES = 50
"""Logged steps over which what a trial logs is averaged."""


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


def below_text(outcome: Outcome) -> str:
    """What a trial that is below frozen has missed."""
    frozen = f"{outcome.to_beat:.4f} at the same step"
    if outcome.merit < 0:
        return f"it has no lDDT-Cα, the frozen model has {frozen}"
    return f"lDDT-Cα {outcome.merit:.4f} is not above the frozen model's {frozen}"


def endings_text(endings: Iterable[str]) -> str:
    """How the trials of a ladder without a survivor have ended: "all diverged" or the counts."""
    counts = Counter(endings)
    if len(counts) == 1:
        return f"all {next(iter(counts))}"
    return ", ".join(f"{count} {ending}" for ending, count in sorted(counts.items()))


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
    found = scored_at(folder, steps, config)
    return None if found is None else found[1]


def scored_at(folder: Path, steps: int, config: LadderConfig) -> tuple[int, float] | None:
    """Step and score of the validation that `trial_score` takes."""
    scores = [row for row in column(folder, COLUMNS[config.metric]) if row[0] <= steps]
    if config.select == "best":
        return max(scores, key=lambda row: row[1], default=None)
    return scores[-1] if scores else None


def column(folder: Path, name: str) -> list[tuple[int, float]]:
    """Step and value of a column of a trial's metrics.csv, without what is empty or not finite."""
    return column_of(metrics_rows(folder), name)


def column_of(rows: Iterable[Mapping[str, str]], name: str) -> list[tuple[int, float]]:
    """The same of rows that have been read."""
    return list(_column(rows, name))


def metrics_rows(folder: Path) -> list[dict[str, str]]:
    """The lines of a trial's metrics.csv; none if it is not there."""
    return _table(folder / RUN / METRICS)


def chain_scores(folder: Path, step: int, config: LadderConfig) -> dict[str, float]:
    """lDDT-Cα of each validation chain by the ladder's metric; empty if there is no such table.

    Args:
        folder: of the trial.
        step: of the validation.
        config: metric.
    """
    name = COLUMNS[config.metric].rpartition("/")[2]
    found: dict[str, float] = {}
    for row in _table(folder / RUN / VALIDATION / f"step_{step:08d}.csv"):
        score = _number(row.get(name))
        if math.isfinite(score):
            found[row["id"]] = score
    return found


def _table(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    # What follows the last line break is being written.
    return list(csv.DictReader(path.read_text(errors="replace").split("\n")[:-1]))


def _column(rows: Iterable[Mapping[str, str]], name: str) -> Iterator[tuple[int, float]]:
    for row in rows:
        step, value = row.get("step") or "", _number(row.get(name))
        if step.isdecimal() and math.isfinite(value):
            yield int(step), value


def _number(cell: str | None) -> float:
    """NaN for what is empty or damaged."""
    try:
        return float(cell or "nan")
    except ValueError:
        return math.nan
