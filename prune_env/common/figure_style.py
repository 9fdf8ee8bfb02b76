"""What all pictures share: the canvas, the colours, axes and legends.

Matplotlib's objects with the Agg canvas and colours of their own: no pyplot, no global settings. Colours are Okabe and
Ito's, and viridis: told apart by colour-blind readers and in grey.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
PALE = {BLUE: "#C6DDEC", GREEN: "#C6E8DC"}
INK, GREY, FAINT = "#222222", "#767676", "#DDDDDD"


def new_figure(width: float, height: float, dpi: int = 200) -> Figure:
    """An empty white figure of so many inches on an Agg canvas. Raises ImportError without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            'pictures need matplotlib, which is not installed: pip install -e ".[train]" in the clone'
        ) from error
    figure = Figure(figsize=(width, height), dpi=dpi, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: str | Path) -> None:
    """Whole or not at all, in the format that the name ends with."""
    path = Path(path)
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:] or "png", facecolor="white")


def dress(axes: Axes) -> None:
    """Two spines and a faint grid."""
    axes.set_facecolor("white")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=GREY, labelcolor=INK, labelsize=8)
    axes.grid(True, color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)


def heading(figure: Figure, title: str) -> None:
    """At the upper left."""
    figure.suptitle(title, x=0.01, ha="left", color=INK, fontsize=11, fontweight="bold")


def legend(axes: Axes) -> None:
    """Above the axes, where it hides nothing; in two columns if one row would be wider than the picture."""
    labels = axes.get_legend_handles_labels()[1]
    in_a_row = sum(len(label) + 7 for label in labels) <= 90  # 7: the mark and the gaps, in characters
    style: dict[str, Any] = {"fontsize": 8, "labelcolor": INK, "frameon": False, "borderaxespad": 0.2, "borderpad": 0.2}
    columns = len(labels) if in_a_row else 2
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=columns, handletextpad=0.5, **style)
