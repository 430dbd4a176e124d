"""The report's figures: scores against parameters (Figure 5), and learning curves.

The same input gives the same bytes. matplotlib is imported when a figure is drawn.
"""

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from esmfold_peft.search.grid import FROZEN
from esmfold_peft.search.ladder import OUT
from esmfold_peft.search.report.rows import NAMES, Mean, Row, ScoreName, called, rows_of
from esmfold_peft.search.search_record import SearchRecord, TrialRecord
from esmfold_peft.search.trial_files import SCORES, column, metrics_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Of Okabe and Ito, which the colour-blind tell apart."""

_GREY = "#6e6e6e"
_MARKERS = "osD^vP"
_DOTS_PER_INCH = 300

_SMOOTHING = 0.9
"""Share of the past in the moving average of the loss."""

Curve = Sequence[tuple[int, float]]
Point = tuple[Row, float, float, float]
"""An adapter, its mean, and the lengths of the error bar below and above."""

_PANELS: dict[ScoreName, str] = {
    "train_score": "training (bars: standard deviation over seeds)",
    "score": "held-out (bars: 95 % interval over seeds and chains)",
}


def draw_figure5(record: SearchRecord) -> dict[str, bytes]:
    """The winners' lDDT-Cα against parameters, as png and svg: training left, held-out right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    train, held_out = figure.subplots(1, 2, sharex=True, sharey=True)
    rows = rows_of(record)
    drawn = [_panel(train, rows, "train_score"), _panel(held_out, rows, "score")]
    _scale(train, empty=not any(drawn))
    train.set_ylabel("lDDT-Cα")
    handles, labels = train.get_legend_handles_labels()
    more, others = held_out.get_legend_handles_labels()
    known = dict(zip(labels + others, handles + more, strict=True))
    if known:
        figure.legend(
            known.values(), known.keys(), loc="outside lower center", ncols=6, frameon=False
        )
    return rendered(figure)


def draw_curves(record: SearchRecord) -> dict[str, bytes]:
    """Validation lDDT-Cα and smoothed loss of all trials, as png and svg, a row for each ladder."""
    from matplotlib.figure import Figure

    ladders = [ladder for ladder in record.ladders if ladder.trials]
    figure = Figure(figsize=(9, 1 + 2.4 * max(1, len(ladders))), layout="constrained")
    grid = figure.subplots(max(1, len(ladders)), 2, sharex=True, squeeze=False)
    for (score, loss), ladder in zip(grid, ladders, strict=False):
        tops = [
            _trial(score, loss, trial, _COLOURS[k % len(_COLOURS)])
            for k, trial in enumerate(ladder.trials)
        ]
        if top := max(tops, default=0.0):
            loss.set_ylim(top=1.1 * top)
        score.set_title(called(ladder.arm), fontsize="medium", loc="left")
        score.set_ylabel("validation lDDT-Cα")
        loss.set_ylabel("training loss")
        if loss.get_legend_handles_labels()[0]:
            loss.legend(
                frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0)
            )
    for axes in grid[-1]:
        axes.set_xlabel("optimizer step")
        if not ladders:
            _note(axes, "no trial yet")
    return rendered(figure)


def rendered(figure: "Figure") -> dict[str, bytes]:
    """The figure as png and svg. Text of the SVG stays text."""
    import matplotlib

    png, svg = io.BytesIO(), io.BytesIO()
    figure.savefig(png, dpi=_DOTS_PER_INCH, format="png")
    with matplotlib.rc_context({"svg.hashsalt": "esmfold_peft", "svg.fonttype": "none"}):
        figure.savefig(svg, format="svg", metadata={"Date": None})
    return {"png": png.getvalue(), "svg": svg.getvalue()}


def _note(axes: "Axes", text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", color=_GREY)


def _scale(axes: "Axes", *, empty: bool) -> None:
    """Sets the axes that both panels share."""
    from matplotlib.ticker import LogFormatterSciNotation, NullFormatter

    if empty:
        axes.set(xlim=(1, 10), ylim=(0, 1))
    low, high = axes.get_xlim()
    decades = math.floor(math.log10(high)) - math.ceil(math.log10(low)) + 1
    # Between decades labels would overlap, but a decade needs some.
    few = LogFormatterSciNotation(minor_thresholds=(2, 1))
    axes.xaxis.set_minor_formatter(few if decades < 2 else NullFormatter())


def _panel(axes: "Axes", rows: Sequence[Row], score: ScoreName) -> bool:
    """Draws one panel; returns whether it has a number."""
    axes.set_title(_PANELS[score], fontsize="medium")
    axes.set_xscale("log")
    axes.set_xlabel("trainable parameters in the language model")
    axes.margins(x=0.1, y=0.2)
    means = [(row, row.mean(score)) for row in rows]
    points = [(row, m.mean, *_bar(m, score)) for row, m in means if m.mean is not None]
    drawn = [
        _line(axes, kind, k, [point for point in points if point[0].kind == kind])
        for k, kind in enumerate(dict.fromkeys(row.kind for row in rows))
    ]
    if not any(drawn):
        _note(axes, "no score" if any(row.winners for row in rows) else "no winner yet")
    return any(drawn)


def _bar(mean: Mean, score: ScoreName) -> tuple[float, float]:
    """Lengths of the error bar below and above the mean."""
    if score == "train_score":
        return mean.spread or 0.0, mean.spread or 0.0
    if mean.mean is None or mean.low is None or mean.high is None:
        return 0.0, 0.0
    # An interval without a width may miss the mean by its last bits.
    return max(0.0, mean.mean - mean.low), max(0.0, mean.high - mean.mean)


def _line(axes: "Axes", kind: str, k: int, known: Sequence[Point]) -> bool:
    """Draws one kind; returns whether it has a number."""
    label, colour = NAMES.get(kind, kind), _COLOURS[k % len(_COLOURS)]
    if kind == FROZEN:
        for _, height, below, above in known:
            axes.axhline(height, color=_GREY, linestyle="--", linewidth=1, label=label)
            axes.axhspan(height - below, height + above, color=_GREY, alpha=0.15, linewidth=0)
        return bool(known)
    points = sorted((row.parameters, *bar, row.rank) for row, *bar in known if row.parameters)
    if not points:
        return False
    x, y, below, above, ranks = zip(*points, strict=True)
    axes.errorbar(
        x, y, yerr=(below, above) if any(below + above) else None, capsize=3,
        linewidth=1.2, markersize=5, label=label, color=colour, marker=_MARKERS[k % len(_MARKERS)],
    )  # fmt: skip
    # Kinds by turns above and below: LoRA's rank 1 has as many parameters as LoRTA's rank 64.
    side = -1 if k % 2 else 1
    for at, height, length, rank in zip(x, y, above if side > 0 else below, ranks, strict=True):
        if rank is not None:
            axes.annotate(
                f"r={rank}", (at, height + side * length), xytext=(0, 5 * side),
                textcoords="offset points", ha="center", va="bottom" if side > 0 else "top",
                fontsize="small", color=colour,
            )  # fmt: skip
    return True


def _trial(score: "Axes", loss: "Axes", trial: TrialRecord, colour: str) -> float:
    """Draws a trial's curves; returns the highest loss that should be seen of it.

    Of a diverged trial that is its first: its last would flatten all others.
    """
    diverged = trial.state == "diverged"
    style = "--" if diverged else "-"
    label = "no α" if trial.alpha is None else f"α = {trial.alpha:g}"
    label += f" ({trial.state})" if trial.state in OUT else ""
    rows = metrics_rows(trial.folder)
    ema, losses = column(rows, SCORES["ema"]), _smoothed(column(rows, "train/loss"))
    _draw(score, ema, color=colour, linestyle=style, linewidth=1.4)
    _draw(score, column(rows, SCORES["raw"]), color=colour, linestyle=":", linewidth=0.9)
    _draw(loss, losses, color=colour, linestyle=style, linewidth=1.2, label=label)
    if diverged:
        for axes, curve in ((score, ema), (loss, losses)):
            if curve:
                axes.plot(trial.step, curve[-1][1], "x", color=colour, markersize=8)
    seen = [value for _, value in (losses[:1] if diverged else losses)]
    return max(seen, default=0.0)


def _smoothed(curve: Curve) -> Curve:
    """Exponential moving average, without the bias of its start."""
    past, weight = 0.0, 0.0
    made: list[tuple[int, float]] = []
    for step, value in curve:
        past = _SMOOTHING * past + (1 - _SMOOTHING) * value
        weight = _SMOOTHING * weight + 1 - _SMOOTHING
        made.append((step, past / weight))
    return made


def _draw(axes: "Axes", curve: Curve, **look: str | float) -> None:
    x, y = [step for step, _ in curve], [value for _, value in curve]
    axes.plot(x, y, marker="." if len(curve) == 1 else None, **look)  # pyright: ignore
