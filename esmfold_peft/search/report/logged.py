"""What the trials of a search log for a comparison: who learns, and how far the update has gone."""

import statistics
from collections.abc import Mapping, Sequence

from esmfold_peft.search.outcomes import LAST_LINES, column_of, metrics_rows
from esmfold_peft.search.records import TrialRecord
from esmfold_peft.training.metrics_file import RELATIVE_UPDATE

LOGGED_COLUMNS = (
    "gradient_share_adapter", "gradient_share_trunk", "gradient_share_head",
    "relative_update", "damping",
)  # fmt: skip

_SHARES = [f"gradient_share/{group}" for group in ("adapter", "trunk", "head")]
_DAMPING = "damping/"


def logged_cells(trial: TrialRecord) -> list[str]:
    """Cells of `LOGGED_COLUMNS`; empty where a trial logs no such number.

    Shares of the squared norm of the gradient are means over the last lines of metrics.csv. The
    relative update ‖ΔW‖/‖W‖, largest over layers and matrices, and the damping √v̂/(√v̂ + eps) of
    Adam's step, one number for each factor, are the last ones.
    """
    rows = [row for row in metrics_rows(trial.folder) if _is_of(row, trial.trial.steps)]
    factors = [name for name in (rows[0] if rows else {}) if name.startswith(_DAMPING)]
    last = {name: _last(rows, name) for name in factors}
    damping = [f"{name.removeprefix(_DAMPING)} {cell}" for name, cell in last.items() if cell]
    return [
        *(_mean(rows, name) for name in _SHARES),
        _last(rows, RELATIVE_UPDATE),
        ", ".join(damping),
    ]


def _is_of(row: Mapping[str, str], steps: int) -> bool:
    step = row.get("step") or ""
    return step.isdecimal() and int(step) <= steps


def _mean(rows: Sequence[Mapping[str, str]], name: str) -> str:
    values = [value for _, value in column_of(rows, name)[-LAST_LINES:]]
    return f"{statistics.fmean(values):.3g}" if values else ""


def _last(rows: Sequence[Mapping[str, str]], name: str) -> str:
    values = column_of(rows, name)
    return f"{values[-1][1]:.3g}" if values else ""
