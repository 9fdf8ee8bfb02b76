"""Draw the current state of the game as text or as an image: one line per agent and one for the whole network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..common.figure_style import BLUE, FAINT, GREY, INK, new_figure
from ..pruning import PruningGroup
from .transition import RoundState

MODES = ("ansi", "rgb_array")
"""Render modes of the environment; each is the name of a function in this module."""
BAR_LENGTH = 20
"""Characters of a full bar."""
LAYERS_LENGTH = 24
"""Longest text that names an agent's layers, in characters."""
DPI = 100
"""Pixels per inch of the image."""
WIDTH, ROW_HEIGHT = 8.0, 0.24
"""Size of the image and of one of its rows, in inches."""
HEADINGS = ("agent", "layers", "filters kept", "", "MACs", "last rate")
"""Headings of the image's columns. The second cell of "filters kept" has none."""
COLUMNS = ((0.02, "left"), (0.12, "left"), (0.35, "left"), (0.76, "right"), (0.87, "right"), (0.98, "right"))
"""Position of each column of the image, as a fraction of the width, and its alignment."""
BAR_LEFT, BAR_RIGHT = 0.35, 0.63
"""Where the bars of the image start and where a full bar ends, as fractions of the width."""


@dataclass(frozen=True)
class RenderRow:
    """The state of one agent."""

    agent: str
    """Name of the agent."""
    layers: tuple[str, ...]
    """Paths of the agent's layers."""
    filters_before: int
    """Filters of the original network."""
    filters_after: int
    """Filters that are kept now."""
    macs_share: float
    """Share of the pruned network's MACs, as a fraction."""
    last_rate: float
    """Fraction of the filters that the last round removed."""


@dataclass(frozen=True)
class RenderTotals:
    """The state of the whole network."""

    accuracy: float
    """Last known accuracy, as a fraction."""
    macs_ratio: float
    """MACs as a fraction of the original network's."""
    params_ratio: float
    """Parameters as a fraction of the original network's."""
    round: int
    """Rounds played so far."""
    rounds: int
    """Rounds of an episode."""

    def __str__(self) -> str:
        return (
            f"round {self.round} of {self.rounds}   accuracy {100 * self.accuracy:.2f} %   MACs "
            f"{100 * self.macs_ratio:.1f} % and parameters {100 * self.params_ratio:.1f} % of the original"
        )


def draw(
    mode: str, groups: Sequence[PruningGroup], now: RoundState, macs_shares: Sequence[float], accuracy: float
) -> str | np.ndarray:
    """Return the state of a game as text (`ansi`) or as an image (`rgb_array`).

    Args:
        mode: One of MODES.
        groups: The group of each agent.
        now: Plan, rates and costs after the rounds played so far.
        macs_shares: Share of the pruned network's MACs of each agent.
        accuracy: The last known accuracy.
    """
    rows = [
        RenderRow(group.name, group.layers, group.filters, kept, share, float(rate))
        for group, kept, share, rate in zip(groups, now.plan, macs_shares, now.last_rates, strict=True)
    ]
    totals = RenderTotals(accuracy, now.macs_ratio, now.params_ratio, now.number, now.rounds.per_episode)
    return ansi(rows, totals) if mode == "ansi" else rgb_array(rows, totals)


def ansi(rows: Sequence[RenderRow], totals: RenderTotals) -> str:
    """Return the state as plain text without colours: one aligned line per agent, then the totals.

    Args:
        rows: The state of each agent.
        totals: The state of the whole network.

    Raises:
        ValueError: There are no rows.
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
    return "\n".join((*lines, str(totals)))


def rgb_array(rows: Sequence[RenderRow], totals: RenderTotals) -> np.ndarray:
    """Return the state as an image, uint8 [H, W, 3].

    The image is 800 pixels wide. Its height depends only on the number of rows.

    Args:
        rows: The state of each agent.
        totals: The state of the whole network.

    Raises:
        ValueError: There are no rows.
        ImportError: Matplotlib is not installed.
    """
    _check(rows)
    figure = new_figure(WIDTH, ROW_HEIGHT * (len(rows) + 3), DPI)  # reports a missing matplotlib, so it comes first
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(xlim=(0, 1), ylim=(len(rows) + 1.5, -1.5))
    text: dict[str, Any] = {"fontsize": 9, "va": "center_baseline", "family": "DejaVu Sans"}
    for number, line in enumerate((HEADINGS, *map(_cells, rows)), -1):
        for (x, side), cell in zip(COLUMNS, line, strict=True):
            axes.text(x, number, cell, ha=side, color=GREY if number < 0 else INK, **text)
    full = BAR_RIGHT - BAR_LEFT
    kept = [full * row.filters_after / row.filters_before for row in rows]
    for lengths, colour in ((full, FAINT), (kept, BLUE)):
        axes.barh(range(len(rows)), lengths, left=BAR_LEFT, height=0.7, color=colour, linewidth=0)
    axes.text(COLUMNS[0][0], len(rows) + 0.4, str(totals), fontweight="bold", color=INK, **text)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3].copy()


def _check(rows: Sequence[RenderRow]) -> None:
    if not rows:
        raise ValueError("rows must have at least one RenderRow, one per agent; got none")


def _cells(row: RenderRow) -> tuple[str, ...]:
    """Return the texts of a row of the image. The third one is empty because the bar is there."""
    kept = f"{row.filters_after} of {row.filters_before}"
    return row.agent, _layers(row), "", kept, f"{100 * row.macs_share:.1f} %", f"{100 * row.last_rate:.1f} %"


def _layers(row: RenderRow) -> str:
    """Return the path of the first layer, shortened at its start, and the number of further layers."""
    more = f" +{len(row.layers) - 1}" if len(row.layers) > 1 else ""
    path, space = row.layers[0], LAYERS_LENGTH - len(more)
    return (path if len(path) <= space else "…" + path[1 - space :]) + more


def _bar(share: float) -> str:
    """Return a bar of text. It is full only if every filter is kept."""
    eighths = int(8 * BAR_LENGTH * share)
    return ("█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8]).ljust(BAR_LENGTH)[:BAR_LENGTH]
