"""Learning curves of all trials: validation lDDT-Cα and smoothed training loss."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from esmfold_peft.search.records import SearchRecord, TrialRecord
from esmfold_peft.search.report.drawing import COLOURS, GREY, new_figure, rendered
from esmfold_peft.search.report.table import label_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curve = list[tuple[float, float]]

_SMOOTHING = 0.9
"""Share of the past in the moving average of the loss."""


def read_metrics(path: Path) -> dict[str, Curve]:
    """Steps and values of each column of a metrics.csv, without cells that are no finite number.

    A file that is not there has none; a last line that was cut is left out.
    """
    if not path.is_file():
        return {}
    lines = path.read_text(errors="replace").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    curves: dict[str, Curve] = {}
    for cells in csv.DictReader(lines, restkey="", restval=""):
        step = _finite(cells.pop("step", ""))
        for name, cell in cells.items():
            value = _finite(cell)
            if step is not None and value is not None:
                curves.setdefault(name, []).append((step, value))
    return curves


def draw_curves(record: SearchRecord) -> dict[str, bytes]:
    """The figure as png and svg, one row of panels for each ladder with a trial."""
    ladders = [ladder for ladder in record.ladders if ladder.trials]
    figure = new_figure(9.0, 1 + 2.4 * max(1, len(ladders)))
    grid = figure.subplots(max(1, len(ladders)), 2, sharex=True, sharey="col", squeeze=False)
    for (score, loss), ladder in zip(grid, ladders, strict=False):
        for k, trial in enumerate(ladder.trials):
            _trial(score, loss, trial, COLOURS[k % len(COLOURS)])
        name = f"{label_of(ladder.arm.kind, ladder.arm.rank)}, seed {ladder.arm.seed}"
        score.set_title(name, fontsize="medium", loc="left")
        score.set_ylabel("validation lDDT-Cα")
        loss.set_ylabel("training loss")
        handles, _ = loss.get_legend_handles_labels()
        if handles:
            loss.legend(
                frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0)
            )
    for axes in grid[-1]:
        axes.set_xlabel("optimizer step")
    if not ladders:
        for axes in grid[0]:
            axes.text(0.5, 0.5, "no trial yet", transform=axes.transAxes, ha="center", color=GREY)
    return rendered(figure)


def smoothed(curve: Curve) -> Curve:
    """Exponential moving average, without the bias of its start."""
    past, weight, made = 0.0, 0.0, []
    for step, value in curve:
        past = _SMOOTHING * past + (1 - _SMOOTHING) * value
        weight = _SMOOTHING * weight + 1 - _SMOOTHING
        made.append((step, past / weight))
    return made


def _trial(score: "Axes", loss: "Axes", trial: TrialRecord, colour: str) -> None:
    curves = read_metrics(trial.folder / "run" / "metrics.csv")
    diverged = trial.state == "diverged"
    style = "--" if diverged else "-"
    label = "no α" if trial.alpha is None else f"α = {trial.alpha:g}"
    ema = curves.get("validation/lddt_ca", [])
    _draw(score, ema, colour, style, 1.4)
    _draw(score, curves.get("validation/lddt_ca_raw", []), colour, ":", 0.9)
    losses = smoothed(curves.get("train/loss", []))
    _draw(loss, losses, colour, style, 1.2, label + (" (diverged)" if diverged else ""))
    if diverged:
        for axes, curve in ((score, ema), (loss, losses)):
            if curve:
                axes.plot(trial.step, curve[-1][1], "x", color=colour, markersize=8)


def _draw(
    axes: "Axes", curve: Sequence[tuple[float, float]], colour: str, style: str, width: float,
    label: str | None = None,
) -> None:  # fmt: skip
    x, y = [step for step, _ in curve], [value for _, value in curve]
    marker = "." if len(curve) == 1 else None
    axes.plot(x, y, color=colour, linestyle=style, linewidth=width, marker=marker, label=label)


def _finite(cell: object) -> float | None:
    try:
        value = float(str(cell))
    except ValueError:
        return None
    return value if math.isfinite(value) else None
