"""Figures as bytes that the same input gives again. matplotlib is imported when one is drawn."""

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Of Okabe and Ito, which the colour-blind tell apart."""

GREY = "#6e6e6e"
_DOTS = 300
"""Per inch."""


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure; sizes in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def rendered(figure: "Figure") -> dict[str, bytes]:
    """The figure as png and svg. Text of the SVG stays text."""
    import matplotlib

    png, svg = io.BytesIO(), io.BytesIO()
    figure.savefig(png, dpi=_DOTS, format="png")
    with matplotlib.rc_context({"svg.hashsalt": "esmfold_peft", "svg.fonttype": "none"}):
        figure.savefig(svg, format="svg", metadata={"Date": None})
    return {"png": png.getvalue(), "svg": svg.getvalue()}
