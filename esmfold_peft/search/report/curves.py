"""Learning curves of all trials: validation lDDT-Cα and smoothed training loss."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from esmfold_peft.search.ladder import OUT
from esmfold_peft.search.outcomes import COLUMNS, column
from esmfold_peft.search.records import SearchRecord, TrialRecord
from esmfold_peft.search.report.drawing import COLOURS, GREY, new_figure, rendered
from esmfold_peft.search.report.table import label_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curve = Sequence[tuple[int, float]]

_SMOOTHING = 0.9
"""Share of the past in the moving average of the loss."""


def draw_curves(record: SearchRecord) -> dict[str, bytes]:
    """The figure as png and svg, one row of panels for each ladder with a trial."""
    ladders = [ladder for ladder in record.ladders if ladder.trials]
    figure = new_figure(9.0, 1 + 2.4 * max(1, len(ladders)))
    grid = figure.subplots(max(1, len(ladders)), 2, sharex=True, squeeze=False)
    for (score, loss), ladder in zip(grid, ladders, strict=False):
        tops = [
            _trial(score, loss, trial, COLOURS[k % len(COLOURS)])
            for k, trial in enumerate(ladder.trials)
        ]
        if top := max(tops, default=0.0):
            loss.set_ylim(top=1.1 * top)
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
    past, weight = 0.0, 0.0
    made: list[tuple[int, float]] = []
    for step, value in curve:
        past = _SMOOTHING * past + (1 - _SMOOTHING) * value
        weight = _SMOOTHING * weight + 1 - _SMOOTHING
        made.append((step, past / weight))
    return made


def _trial(score: "Axes", loss: "Axes", trial: TrialRecord, colour: str) -> float:
    """Draws a trial, and returns the highest loss that is to be seen of it.

    Of one that has diverged that is its first: its last would flatten all others.
    """
    diverged = trial.state == "diverged"
    style = "--" if diverged else "-"
    ended = f" ({trial.state})" if trial.state in OUT else ""
    label = "no α" if trial.alpha is None else f"α = {trial.alpha:g}"
    ema = column(trial.folder, COLUMNS["ema"])
    _draw(score, ema, colour, style, 1.4)
    _draw(score, column(trial.folder, COLUMNS["raw"]), colour, ":", 0.9)
    losses = smoothed(column(trial.folder, "train/loss"))
    _draw(loss, losses, colour, style, 1.2, label + ended)
    if diverged:
        for axes, curve in ((score, ema), (loss, losses)):
            if curve:
                axes.plot(trial.step, curve[-1][1], "x", color=colour, markersize=8)
    seen = [value for _, value in (losses[:1] if diverged else losses)]
    return max(seen, default=0.0)


def _draw(
    axes: "Axes", curve: Curve, colour: str, style: str, width: float,
    label: str | None = None,
) -> None:  # fmt: skip
    x, y = [step for step, _ in curve], [value for _, value in curve]
    marker = "." if len(curve) == 1 else None
    axes.plot(x, y, color=colour, linestyle=style, linewidth=width, marker=marker, label=label)
