"""The pictures of a run: how the search went, what became of each layer, and every plan that was evaluated."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.figure_style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PALE,
    PURPLE,
    add_legend,
    add_title,
    new_figure,
    save_figure,
    style_axes,
)
from .summary import percent, scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class LayerRow:
    """A layer before and after pruning; `agent` chose its filters."""

    name: str
    agent: str
    filters_before: int
    filters_after: int
    macs_before: int
    macs_after: int

    def __post_init__(self) -> None:
        for name in ("filters", "macs"):
            before, after = getattr(self, f"{name}_before"), getattr(self, f"{name}_after")
            if not 0 <= after <= before or before == 0:
                raise ValueError(f"layer {self.name!r} cannot keep {after} of {before} {name}; pruning takes away")


def plot_learning(
    path: str | Path,
    episodes: Sequence[Mapping[str, Any]],
    *,
    references: Mapping[str, float] | None = None,
    window: int | None = None,
    title: str = "Learning",
) -> None:
    """Return, best accuracy so far and exploration over the episodes of a run, in panels below each other.

    episodes    rows of metrics.jsonl: "episode" and any of "return", "eval/return", "best_accuracy" (fraction)
                and "epsilon". Panels without data are left out; of an episode met twice (resumed) the last row counts
    references  accuracies to compare the best with, by name: the original's, other methods'
    window      episodes in the running mean; default a twentieth of all, at least 5

    Raises ValueError if no row has a return.
    """
    returns, evaluations = _series(episodes, "return"), _series(episodes, "eval/return")
    best, epsilon = _series(episodes, "best_accuracy"), _series(episodes, "epsilon")
    if not returns:
        raise ValueError('nothing to plot: no row has "episode" and "return"; give the rows of metrics.jsonl')
    window = window or max(5, len(returns) // 20)
    heights = [3.0] + [2.2] * bool(best) + [1.2] * bool(epsilon)
    figure = new_figure(7.5, 0.9 + sum(heights))  # first, as it has the words for a missing matplotlib
    from matplotlib.ticker import MaxNLocator

    panels = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for panel in panels:
        style_axes(panel)
    add_title(figure, title)
    upper, rest = panels[0], list(panels[1:])
    x, y = list(returns), list(returns.values())
    upper.plot(x, y, ".", color=BLUE, alpha=0.35, markersize=5, markeredgewidth=0, label="episode")
    smooth = _running_mean(y, min(window, len(y)))
    upper.plot(x[-len(smooth) :], smooth, color=BLUE, linewidth=1.8, label=f"mean of the last {window}")
    if evaluations:
        style = {"color": ORANGE, "linewidth": 1.2, "marker": "D", "markersize": 4, "label": "greedy evaluation"}
        upper.plot(list(evaluations), list(evaluations.values()), **style)
    upper.set_ylabel("Return", color=INK)
    _leave_out_the_lowest(upper, x, y, [*smooth, *evaluations.values()], "{:.3g}")
    add_legend(upper)
    if best:
        _plot_best(rest.pop(0), best, references or {})
    if epsilon:
        rest[0].plot(list(epsilon), list(epsilon.values()), color=GREEN, linewidth=1.5)
        rest[0].set_ylabel("Exploration ε", color=INK)
        rest[0].set_ylim(-0.04, 1.04)
    panels[-1].set_xlabel("Episode", color=INK)
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    figure.align_ylabels()
    save_figure(figure, path)


def plot_layers(
    path: str | Path, layers: Sequence[LayerRow], *, title: str = "Layers before and after pruning"
) -> None:
    """Filters and MACs of every layer, the original faint and the pruned network solid on top, in the order given.

    The picture grows with the number of layers. Raises ValueError if there are none.
    """
    if not layers:
        raise ValueError("nothing to plot: layers is empty")
    figure = new_figure(9.0, 1.3 + 0.2 * len(layers))
    left, right = figure.subplots(1, 2, sharey=True)
    unit, divisor = scale(max(layer.macs_before for layer in layers))
    macs = [(layer.macs_before, layer.macs_after) for layer in layers]
    filters = [(layer.filters_before, layer.filters_after) for layer in layers]
    _plot_bars(left, filters, BLUE, [f"{after} of {before}" for before, after in filters])
    percents = [percent(after / before, 0) for before, after in macs]
    _plot_bars(right, [(before / divisor, after / divisor) for before, after in macs], GREEN, percents)
    left.set_yticks(range(len(layers)), [f"{layer.name} · {layer.agent}" for layer in layers])
    left.set_ylim(len(layers) - 0.4, -0.6)
    before, after = sum(pair[0] for pair in macs), sum(pair[1] for pair in macs)
    left.set_xlabel("Filters", color=INK)
    right.set_xlabel(f"MACs{unit} (layers shown: {percent(after / before, 1)} stay)", color=INK)
    right.tick_params(labelleft=False)
    add_title(figure, title)
    save_figure(figure, path)


def plot_tradeoff(
    path: str | Path,
    points: Sequence[tuple[float, float]],
    marked: Mapping[str, tuple[float, float]],
    *,
    budget: float | None = None,
    title: str = "Every evaluated plan",
) -> None:
    """Plot accuracy against MACs of all plans, coloured by the order of evaluation.

    With a budget all plans cost nearly the same. The plot then shows that narrow range, and the original network as a
    horizontal line; a few plans far below all others are marked at the lower edge. Points in one place share a mark.

    Args:
        path: The file to write.
        points: (MACs ratio, accuracy) of every plan, both as fractions.
        marked: The same for the networks "original", and if there are any "winner" and "uniform".
        budget: Target MACs as a fraction, or None.
        title: Title of the plot.

    Raises:
        ValueError: There are no points.
    """
    original, winner, uniform = marked["original"], marked.get("winner"), marked.get("uniform")
    if not points:
        raise ValueError("nothing to plot: points is empty; give (macs_ratio, accuracy) of every evaluated plan")
    figure = new_figure(7.5, 5.2)
    axes = figure.add_subplot()
    style_axes(axes)
    x, y = [100 * macs for macs, _ in points], [100 * accuracy for _, accuracy in points]
    count = len(points)
    colours: dict[str, Any] = {"c": range(1, count + 1), "cmap": "viridis", "vmin": 1, "vmax": max(2, count)}
    dots = axes.scatter(x, y, s=18, linewidths=0, alpha=0.85, zorder=2, **colours)
    shown = [*x, *(100 * pair[0] for pair in (winner, uniform) if pair is not None)]
    shown += [] if budget is None else [100 * budget]
    low, high = min(shown), max(shown)
    near = 100 * original[0] - high < 3 * max(high - low, 1.0)
    if near:
        low, high = min(low, 100 * original[0]), max(high, 100 * original[0])
    margin = max(0.06 * (high - low), 0.25 - (high - low) / 2)  # half a point at least
    axes.set_xlim(low - margin, high + margin)
    marks = [("winner", winner, "*", ORANGE, 260), ("uniform", uniform, "s", PURPLE, 90)]
    if near:
        marks.insert(0, ("original", original, "D", INK, 60))
    else:
        label = f"original: {percent(original[1], 1)} (at {percent(original[0], 0)} of MACs)"
        axes.axhline(100 * original[1], color=INK, linewidth=1.2, linestyle="--", label=label)
    for name, pair, marker, colour, size in marks:
        names = [other for other, place, *_ in marks if place == pair]
        if pair is not None and name == names[0]:  # the others in this place would hide it, or be hidden
            style: dict[str, Any] = {"marker": marker, "color": colour, "s": size, "edgecolors": "white"}
            style["zorder"] = 5 if name == "winner" else 4  # a star lets corners of what lies below be seen
            axes.scatter([100 * pair[0]], [100 * pair[1]], label=f"{' = '.join(names)}: {percent(pair[1], 1)}", **style)
    if budget is not None:
        label = f"budget: {100 * budget:g} %"
        axes.axvline(100 * budget, color=GREY, linewidth=1.4, linestyle=":", zorder=1, label=label)
        # Without one, low accuracy may be the price of few MACs.
        _leave_out_the_lowest(axes, x, y, [100 * pair[1] for pair in marked.values()], "{:.1f} %")
    axes.set_xlabel("MACs, % of the original", color=INK)
    axes.set_ylabel("Accuracy on reward images, %", color=INK)
    ticks = sorted({1, *(count * quarter // 4 for quarter in range(1, 5))} - {0})
    bar = figure.colorbar(dots, ax=axes, pad=0.02, aspect=30, ticks=ticks)
    bar.set_label("Order of evaluation", color=INK)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=GREY, labelsize=8, labelcolor=INK)
    add_title(figure, title)
    add_legend(axes)
    save_figure(figure, path)


def _leave_out_the_lowest(axes: Axes, x: list[Any], y: list[float], shown: Sequence[float], written: str) -> None:
    """Where a few of the points lie so far below that all others are squeezed, marks at the lower edge stand for them.

    What is in `shown` stays in the picture; `written` is the format of a value.
    """
    high, low = max(*y, *shown), min(sorted(y)[len(y) // 20], *shown)
    spread = max(high - low, 0.02 * (high - min(y)))  # the others may be all equal
    edge = low - 0.15 * spread
    lost = [place for place, value in zip(x, y, strict=True) if value < edge]
    if not lost or high - min(y) < 2 * (high - low):
        return
    label = f"{len(lost)} further down, to {written.format(min(y))}"
    axes.plot(lost, [edge] * len(lost), "v", color=GREY, markersize=4, label=label)
    axes.set_ylim(edge - 0.04 * spread, high + 0.06 * spread)


def _plot_best(axes: Axes, best: Mapping[int, float], references: Mapping[str, float]) -> None:
    y = [100 * accuracy for accuracy in best.values()]
    axes.step(list(best), y, where="post", color=BLUE, linewidth=1.8, label=f"best so far: {y[-1]:.1f} %", zorder=3)
    looks = itertools.cycle(itertools.product(("--", "-.", ":"), (ORANGE, PURPLE, INK)))
    for (name, accuracy), (dashes, colour) in zip(references.items(), looks, strict=False):
        label = f"{name}: {percent(accuracy, 1)}"
        axes.axhline(100 * accuracy, color=colour, linewidth=1.2, linestyle=dashes, label=label)
    axes.set_ylabel("Best accuracy on\nreward images, %", color=INK)
    add_legend(axes)


def _plot_bars(axes: Axes, pairs: Sequence[tuple[float, float]], colour: str, notes: Sequence[str]) -> None:
    style_axes(axes)
    axes.grid(False)  # the notes give the numbers
    rows, before, after = range(len(pairs)), [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    axes.barh(rows, before, height=0.76, color=PALE[colour], linewidth=0, label="original")
    axes.barh(rows, after, height=0.76, color=colour, linewidth=0, label="pruned")
    for row, (length, note) in enumerate(zip(before, notes, strict=True)):
        offset: dict[str, Any] = {"xytext": (3, 0), "textcoords": "offset points"}
        axes.annotate(note, (length, row), va="center", color=INK, fontsize=7, **offset)
    axes.set_xlim(0, 1.2 * max(before))
    axes.tick_params(axis="y", length=0)
    add_legend(axes)


def _series(rows: Sequence[Mapping[str, Any]], key: str) -> dict[int, float]:
    """Episode -> value, in the order of episodes."""
    values = {row["episode"]: row[key] for row in rows if "episode" in row and row.get(key) is not None}
    return dict(sorted(values.items()))


def _running_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean of the last `window` values, from where there are as many."""
    sums = [0.0, *itertools.accumulate(values)]
    return [(sums[i] - sums[i - window]) / window for i in range(window, len(sums))]
