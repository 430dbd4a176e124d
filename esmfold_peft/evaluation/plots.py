"""Figures of scores. matplotlib is imported when the first one is drawn."""

import io
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esmfold_peft.disk.files import make_folder, write_atomically
from esmfold_peft.evaluation.scoring import Score

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FOLDER = "plots"

_BLUE, _GREY, _RED = "#3b6ea5", "#9a9a9a", "#b5483a"
_DOTS = 150
"""Per inch."""

_COLUMNS = 40
"""Letters in a line of a label: the side of a figure has room for as many."""


def draw_scores(output: Path, rows: Sequence[Score], calibration: dict[str, Any]) -> None:
    """Draws the distribution of lDDT-Cα of chains with scores, by length too, and calibration.

    `calibration` is that of summary.json; without bins there is no such figure.
    """
    known = [(row.length or 0, row.lddt_ca) for row in rows if row.lddt_ca is not None]
    if known:
        lengths, scores = zip(*known, strict=True)
        _write(output, "distribution", lambda axes: _distribution(axes, scores))
        _write(output, "length", lambda axes: _by_length(axes, lengths, scores))
    if calibration["bins"]:
        _write(output, "calibration", lambda axes: _calibration(axes, calibration))


def draw_comparison(
    output: Path,
    one: Sequence[float],
    other: Sequence[float],
    names: tuple[str, str],
    title: str,
) -> Path:
    """Draws the lDDT-Cα of the same chains in two evaluations against each other.

    `names` are those of the axes; long ones are broken into lines.
    """

    def draw(axes: "Axes") -> None:
        axes.plot([0, 1], [0, 1], color=_GREY, linewidth=1)
        _scatter(axes, one, other)
        x, y = (textwrap.fill(f"lDDT-Cα, {name}", _COLUMNS) for name in names)
        axes.set(xlabel=x, ylabel=y)
        axes.set_title(title, fontsize="medium")
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")

    return _write(output, "comparison", draw)


def _distribution(axes: "Axes", scores: Sequence[float]) -> None:
    mean = sum(scores) / len(scores)
    axes.hist(scores, bins=[k / 20 for k in range(21)], color=_BLUE)
    axes.axvline(mean, color=_RED, linewidth=1, label=f"mean {mean:.3f}")
    axes.set(xlabel="lDDT-Cα", ylabel=f"chains (of {len(scores)})", xlim=(0, 1))
    axes.locator_params(axis="y", integer=True)
    axes.legend(frameon=False)


def _by_length(axes: "Axes", lengths: Sequence[int], scores: Sequence[float]) -> None:
    _scatter(axes, lengths, scores)
    axes.set(xlabel="length (residues)", ylabel="lDDT-Cα", ylim=(0, 1))
    axes.set_xlim(left=0)


def _scatter(axes: "Axes", x: Sequence[int] | Sequence[float], y: Sequence[float]) -> None:
    """A dot for each chain; the frame does not cut those on its edge."""
    axes.scatter(x, y, s=10, color=_BLUE, alpha=0.7, linewidths=0, clip_on=False, zorder=3)


def _calibration(axes: "Axes", found: dict[str, Any]) -> None:
    bins = found["bins"]
    axes.plot([0, 1], [0, 1], color=_GREY, linewidth=1, label="perfect")
    most = max(b["residues"] for b in bins)
    axes.bar(
        [(b["from"] + b["to"]) / 200 for b in bins],
        [0.2 * b["residues"] / most for b in bins],
        width=0.046,
        color=_GREY,
        alpha=0.35,
        label=f"residues (tallest bar: {most:,})",
    )
    x, y = [b["plddt"] / 100 for b in bins], [b["lddt_ca"] for b in bins]
    label = f"expected calibration error {found['mean_absolute_error']:.3f}"
    axes.plot(x, y, color=_BLUE, linewidth=0.8, alpha=0.5)
    sizes = [4 + 56 * b["residues"] / most for b in bins]
    axes.scatter(x, y, s=sizes, color=_BLUE, linewidths=0, clip_on=False, zorder=3, label=label)
    axes.set(xlabel="pLDDT / 100", ylabel="lDDT-Cα of the residues", xlim=(0, 1), ylim=(0, 1))
    axes.legend(frameon=False, loc="upper left")


def _write(output: Path, name: str, draw: Callable[["Axes"], None]) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4), layout="constrained")
    draw(figure.add_subplot())
    stream = io.BytesIO()
    figure.savefig(stream, dpi=_DOTS, format="png")
    make_folder(output / FOLDER)
    path = output / FOLDER / f"{name}.png"
    write_atomically(path, stream.getvalue())
    return path
