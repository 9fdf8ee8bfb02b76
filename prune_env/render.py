"""The pruned network at a glance, as text and as a picture: a line for every agent, and one for the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .report import BLUE, FAINT, GREY, INK, new_figure

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
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = new_figure(PICTURE_WIDTH, ROW_HEIGHT * (len(rows) + 3), DPI)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(xlim=(0, 1), ylim=(len(rows) + 1.5, -1.5))
    small = {"fontsize": 9, "va": "center", "family": "DejaVu Sans"}
    totals = _totals(accuracy, macs_ratio, params_ratio, round, rounds)
    ...
