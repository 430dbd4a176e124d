"""Figure 5: lDDT-Cα of the winners against trainable parameters in the language model."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from esmfold_peft.search.records import SearchRecord
from esmfold_peft.search.report.drawing import COLOURS, GREY, new_figure, rendered
from esmfold_peft.search.report.table import NAMES, Mean, Row, rows_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKERS = "osD^vP"


def draw_figure5(record: SearchRecord) -> dict[str, bytes]:
    """The figure as png and svg, training on the left and held-out chains on the right."""
    figure = new_figure(9.0, 4.0)
    train, held_out = figure.subplots(1, 2, sharex=True, sharey=True)
    rows = rows_of(record)
    drawn = [
        _panel(train, rows, lambda row: row.train, "training"),
        _panel(held_out, rows, lambda row: row.validation, "held-out"),
    ]
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


def _scale(axes: "Axes", *, empty: bool) -> None:
    """Settles the axes that both panels share."""
    from matplotlib.ticker import LogFormatterSciNotation, NullFormatter

    if empty:
        axes.set(xlim=(1, 10), ylim=(0, 1))
    low, high = axes.get_xlim()
    decades = math.floor(math.log10(high)) - math.ceil(math.log10(low)) + 1
    # Between decades labels would overlap, but a decade needs some.
    few = LogFormatterSciNotation(minor_thresholds=(2, 1))
    axes.xaxis.set_minor_formatter(few if decades < 2 else NullFormatter())


def _panel(axes: "Axes", rows: Sequence[Row], value: Callable[[Row], Mean], title: str) -> bool:
    """Draws one panel, and says whether it has a number."""
    axes.set_title(title, fontsize="medium")
    axes.set_xscale("log")
    axes.set_xlabel("trainable parameters in the language model")
    axes.margins(x=0.1, y=0.2)
    kinds = list(dict.fromkeys(row.kind for row in rows))
    drawn = [
        _line(axes, kind, k, [row for row in rows if row.kind == kind], value)
        for k, kind in enumerate(kinds)
    ]
    if not any(drawn):
        said = "no score" if any(row.winners for row in rows) else "no winner yet"
        axes.text(0.5, 0.5, said, transform=axes.transAxes, ha="center", color=GREY)
    return any(drawn)


def _line(
    axes: "Axes", kind: str, k: int, rows: Sequence[Row], value: Callable[[Row], Mean]
) -> bool:
    """Draws one kind, and says whether it has a number."""
    known = [(row, value(row)) for row in rows if value(row).value is not None]
    if kind == "none":
        for _, mean in known:
            axes.axhline(
                mean.value or 0.0, color=GREY, linestyle="--", linewidth=1, label=NAMES[kind]
            )
        return bool(known)
    points = sorted(
        (row.parameters, mean.value, mean.spread or 0.0, row.rank)
        for row, mean in known
        if row.parameters and mean.value is not None
    )
    if not points:
        return False
    x, y, spreads, ranks = zip(*points, strict=True)
    colour, marker = COLOURS[k % len(COLOURS)], _MARKERS[k % len(_MARKERS)]
    bars = spreads if any(spreads) else None
    label = NAMES.get(kind, kind)
    axes.errorbar(
        x,
        y,
        yerr=bars,
        capsize=3,
        linewidth=1.2,
        markersize=5,
        label=label,
        color=colour,
        marker=marker,
    )
    # Kinds by turns above and below: LoRA's rank 1 has as many parameters as LoRTA's rank 64.
    side = -1 if k % 2 else 1
    for at, height, spread, rank in zip(x, y, spreads, ranks, strict=True):
        if rank is not None:
            axes.annotate(
                f"r={rank}", (at, height + side * spread), xytext=(0, 5 * side),
                textcoords="offset points", ha="center", va="bottom" if side > 0 else "top",
                fontsize="small", color=colour,
            )  # fmt: skip
    return True
