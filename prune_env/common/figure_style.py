"""The common style of all figures: canvas, colours, axes and legends.

Figures use the objects of matplotlib with the Agg canvas, without pyplot and without global settings. The colours are
those of Okabe and Ito, and viridis. Colour-blind readers can distinguish them, also in greyscale.
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
COLOURS = (ORANGE, BLUE, GREEN, PURPLE, INK, GREY)
"""Colours of lines, in the order in which they are used."""


def new_figure(width: float, height: float, dpi: int = 200) -> Figure:
    """Create an empty white figure on an Agg canvas.

    Args:
        width: Width in inches.
        height: Height in inches.
        dpi: Pixels per inch.

    Raises:
        ImportError: Matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            'figures need matplotlib, which is not installed: pip install -e ".[train]" in the clone'
        ) from error
    figure = Figure(figsize=(width, height), dpi=dpi, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure to a file, completely or not at all.

    Args:
        figure: The figure.
        path: The file. Its suffix is the format; without a suffix the format is PNG.
    """
    path = Path(path)
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:] or "png", facecolor="white")


def style_axes(axes: Axes) -> None:
    """Style axes with two spines, a faint grid and the colours of this module."""
    axes.set_facecolor("white")
    axes.set_prop_cycle(color=(BLUE, ORANGE, GREEN, PURPLE, INK, GREY))
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=GREY, labelcolor=INK, labelsize=8)
    axes.grid(True, color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)


def add_title(figure: Figure, title: str) -> None:
    """Write the figure's title at the upper left."""
    figure.suptitle(title, x=0.01, ha="left", color=INK, fontsize=11, fontweight="bold")


def add_legend(axes: Axes) -> None:
    """Draw a legend above the axes, in two columns if one row would be wider than the figure."""
    labels = axes.get_legend_handles_labels()[1]
    in_a_row = sum(len(label) + 7 for label in labels) <= 90  # marker and gaps take 7 characters
    style: dict[str, Any] = {"fontsize": 8, "labelcolor": INK, "frameon": False, "borderaxespad": 0.2, "borderpad": 0.2}
    columns = len(labels) if in_a_row else 2
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=columns, handletextpad=0.5, **style)
