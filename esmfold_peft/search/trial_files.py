"""A trial's outcome and scores, read from its folder, or why an attempt had no outcome."""

import csv
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from esmfold_peft.config import LadderConfig
from esmfold_peft.errors import BusyError, UserError
from esmfold_peft.runs.status import EXIT_CODES, Status, whole_status
from esmfold_peft.search.attempt import RUN, attempts, last_words
from esmfold_peft.search.ladder import Outcome, Trial
from esmfold_peft.training.metrics_file import METRICS
from esmfold_peft.training.validation import VALIDATION

SCORES = {"ema": "validation/lddt_ca", "raw": "validation/lddt_ca_raw"}
"""Columns of metrics.csv by `ladder.metric`."""

LAST_LINES = 50
"""What a trial logs is averaged over this many logged steps."""


@dataclass(frozen=True)
class Lost:
    """Why an attempt had no outcome, in one line.

    Hopeless: another attempt would end the same way. Busy: an earlier process of the trial had not
    ended yet, so that this one could not begin.
    """

    reason: str
    hopeless: bool = False
    busy: bool = False


def read_end(folder: Path, trial: Trial, config: LadderConfig) -> tuple[Outcome, Status] | None:
    """How a trial has ended, and its training's status; None if it has not ended."""
    status = whole_status(folder / RUN)
    if status is None:
        return None
    score = trial_score(folder, trial.steps, config)
    if status.status == "diverged":
        return Outcome("diverged", score), status
    if status.status in ("converged", "plateau") and status.step >= trial.steps:
        ending = "converged" if status.status == "converged" else "plateau"
        return Outcome(ending, score), status
    return None


def below_text(outcome: Outcome) -> str:
    """Why a trial is below frozen."""
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
    """Why a trial's process is gone without an outcome; `earlier` attempts do not count."""
    known = attempts(folder)[earlier:]
    if not known:
        return Lost("its job was gone before it started")
    code, last = known[-1].code, last_words(folder)
    if code is None:
        return Lost("its process was killed")
    if code == EXIT_CODES["interrupted"]:
        return Lost("it was asked to stop")
    if code == BusyError.exit_code:
        return Lost(last, busy=True)
    if code == UserError.exit_code:
        # Wrong settings end it before training starts, a full disk or a lost GPU later.
        metrics = folder / RUN / METRICS
        trained = metrics.is_file() and metrics.stat().st_mtime >= known[-1].began
        return Lost(last or f"exit code {code}", hopeless=not trained)
    return Lost(f"exit code {code}" + (f": {last}" if last else ""))


def trial_score(folder: Path, steps: int, config: LadderConfig) -> float | None:
    """Validation lDDT-Cα of a trial by the ladder's metric, up to `steps`; None if none."""
    found = scored_at(folder, steps, config)
    return None if found is None else found[1]


def scored_at(folder: Path, steps: int, config: LadderConfig) -> tuple[int, float] | None:
    """Step and score of the validation that decides (`ladder.select`)."""
    scores = [row for row in column(metrics_rows(folder), SCORES[config.metric]) if row[0] <= steps]
    if config.select == "best":
        return max(scores, key=lambda row: row[1], default=None)
    return scores[-1] if scores else None


def chain_scores(folder: Path, step: int, config: LadderConfig) -> dict[str, float]:
    """lDDT-Cα of each validation chain at a step; empty if there is no such table."""
    name = SCORES[config.metric].rpartition("/")[2]
    rows = _table(folder / RUN / VALIDATION / f"step_{step:08d}.csv")
    scores = {row["id"]: _number(row.get(name)) for row in rows}
    return {chain: score for chain, score in scores.items() if math.isfinite(score)}


def column(rows: Iterable[Mapping[str, str]], name: str) -> list[tuple[int, float]]:
    """Step and value of a column of metrics.csv, without empty and non-finite cells."""
    cells = ((row.get("step") or "", _number(row.get(name))) for row in rows)
    return [(int(step), v) for step, v in cells if step.isdecimal() and math.isfinite(v)]


def metrics_rows(folder: Path) -> list[dict[str, str]]:
    """The rows of a trial's metrics.csv; none if there is no such file."""
    return _table(folder / RUN / METRICS)


def _table(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    # What follows the last line break is being written.
    return list(csv.DictReader(path.read_text(errors="replace").split("\n")[:-1]))


def _number(cell: str | None) -> float:
    """NaN for an empty or damaged cell."""
    try:
        return float(cell or "nan")
    except ValueError:
        return math.nan
