"""The pruned network at a glance, as text and as a picture: a line for every agent, and one for the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..common.figure_style import BLUE, FAINT, GREY, INK, new_figure

BAR = 20
"""Characters of a full bar."""
NAME = 24
"""Characters of layer names that are shown, the last ones."""
DPI, PICTURE_WIDTH, ROW_HEIGHT = 100, 8.0, 0.24


@dataclass(frozen=True)
class RenderRow:
    """What one agent's line shows."""

    agent: str
    layers: tuple[str, ...]
    filters_before: int
    filters_after: int
    macs_share: float
    """of the pruned network's MACs, as a fraction"""
    last_rate: float
    """fraction of the filters that went in the last round"""


def ansi(
    rows: Sequence[RenderRow], accuracy: float, macs_ratio: float, params_ratio: float, round: int, rounds: int
) -> str:
    """Plain text without colours, one line more than `rows`. Raises ValueError if there are none.

    accuracy, macs_ratio, params_ratio  fractions; the ratios are to the unpruned network
    """
    _check(rows)
    agents, layers = max(len(row.agent) for row in rows), max(len(_layers(row)) for row in rows)
    digits = max(len(str(row.filters_before)) for row in rows)
    lines = [
        f"{row.agent:<{agents}}  {_layers(row):<{layers}}  |{_bar(row.filters_after / row.filters_before)}| "
        f"{row.filters_after:>{digits}} of {row.filters_before:>{digits}}  MACs {100 * row.macs_share:5.1f} %  "
        f"last {100 * row.last_rate:5.1f} %"
        for row in rows
    ]
    return "\n".join((*lines, _totals(accuracy, macs_ratio, params_ratio, round, rounds)))


def rgb_array(
    rows: Sequence[RenderRow], accuracy: float, macs_ratio: float, params_ratio: float, round: int, rounds: int
) -> np.ndarray:
    """The same as a picture: uint8 [H, W, 3], 800 pixels wide, its height given by the number of rows alone.

    Raises ValueError if there are no rows, ImportError without matplotlib.
    """
    _check(rows)
    figure = new_figure(PICTURE_WIDTH, ROW_HEIGHT * (len(rows) + 3), DPI)  # first: words for a missing matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(xlim=(0, 1), ylim=(len(rows) + 1.5, -1.5))
    look: dict[str, Any] = {"fontsize": 9, "va": "center_baseline", "family": "DejaVu Sans", "color": INK}
    left, right = 0.35, 0.63  # of the bars
    places = ((0.02, "left"), (0.12, "left"), (left, "left"), (0.76, "right"), (0.87, "right"), (0.98, "right"))
    cells = [
        (
            row.agent,
            _layers(row),
            "",
            f"{row.filters_after} of {row.filters_before}",
            f"{100 * row.macs_share:.1f} %",
            f"{100 * row.last_rate:.1f} %",
        )
        for row in rows
    ]
    headings = ("agent", "layers", "filters that stay", "", "MACs", "last rate")
    for number, line in enumerate((headings, *cells), -1):
        for (x, side), text in zip(places, line, strict=True):
            axes.text(x, number, text, ha=side, **{**look, "color": GREY if number < 0 else INK})
    kept = [(right - left) * row.filters_after / row.filters_before for row in rows]
    axes.barh(range(len(rows)), right - left, left=left, height=0.7, color=FAINT, linewidth=0)
    axes.barh(range(len(rows)), kept, left=left, height=0.7, color=BLUE, linewidth=0)
    totals = _totals(accuracy, macs_ratio, params_ratio, round, rounds)
    axes.text(0.02, len(rows) + 0.4, totals, fontweight="bold", **look)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3].copy()


def _check(rows: Sequence[RenderRow]) -> None:
    if not rows:
        raise ValueError("nothing to show: rows is empty; give one RenderRow for every agent")


def _layers(row: RenderRow) -> str:
    """The first layer's path, shortened from the left, and how many more there are."""
    more = f" +{len(row.layers) - 1}" if len(row.layers) > 1 else ""
    path, space = row.layers[0], NAME - len(more)
    return (path if len(path) <= space else "…" + path[1 - space :]) + more


def _bar(share: float) -> str:
    """Full only if nothing went, empty only below an eighth of a character."""
    eighths = int(8 * BAR * share)
    return ("█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8]).ljust(BAR)[:BAR]


def _totals(accuracy: float, macs_ratio: float, params_ratio: float, round: int, rounds: int) -> str:
    return (
        f"round {round} of {rounds}   accuracy {100 * accuracy:.2f} %   MACs {100 * macs_ratio:.1f} % and parameters "
        f"{100 * params_ratio:.1f} % of the original"
    )
