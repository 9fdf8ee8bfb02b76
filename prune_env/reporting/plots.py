"""The plots of a run: the progress of the search, the layers before and after pruning, and all evaluated plans."""

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
from .summary import NetworkRow, percent, scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import PathCollection
    from matplotlib.figure import Figure

MARKERS = {"original": ("D", INK, 60), "winner": ("*", ORANGE, 260), "uniform": ("s", PURPLE, 90)}
"""Marker, colour and size of each network that `plot_tradeoff` marks."""


@dataclass(frozen=True)
class LayerRow:
    """A layer before and after pruning.

    Raises:
        ValueError: The layer has more filters or MACs after pruning than before, fewer than 0, or none before.
    """

    name: str
    """Path of the layer in the network."""
    agent: str
    """Name of the agent that pruned the layer."""
    filters_before: int
    filters_after: int
    macs_before: int
    macs_after: int

    def __post_init__(self) -> None:
        for name in ("filters", "macs"):
            before, after = getattr(self, f"{name}_before"), getattr(self, f"{name}_after")
            if not 0 <= after <= before or before == 0:
                raise ValueError(
                    f"layer {self.name!r} cannot keep {after} of {before} {name}: {name}_after must be between 0 and "
                    f"{name}_before, which must be above 0"
                )


def plot_learning(
    path: str | Path,
    episodes: Sequence[Mapping[str, Any]],
    *,
    references: Mapping[str, float] | None = None,
    window: int | None = None,
    title: str = "Learning",
) -> None:
    """Plot return, best accuracy so far and exploration against the episode, in one panel each.

    Panels without data are left out. If an episode occurs twice, as in a resumed run, its last row is used.

    Args:
        path: The file to write.
        episodes: Rows of metrics.jsonl: "episode" and any of "return", "eval/return", "best_accuracy" (a fraction) and
            "epsilon".
        references: Accuracies to compare the best accuracy with, as fractions, by name.
        window: Episodes in the running mean; None for a twentieth of all episodes, but at least 5.
        title: Title of the plot.

    Raises:
        ValueError: No row has both "episode" and "return".
        ImportError: Matplotlib is not installed.
    """
    returns, best, epsilon = (_series(episodes, key) for key in ("return", "best_accuracy", "epsilon"))
    if not returns:
        raise ValueError('episodes must have a row with "episode" and "return"; give the rows of metrics.jsonl')
    heights = [3.0] + [2.2] * bool(best) + [1.2] * bool(epsilon)  # inches
    figure = new_figure(7.5, 0.9 + sum(heights))  # reports a missing matplotlib, so it comes first
    from matplotlib.ticker import MaxNLocator

    panels = list(figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0])
    for panel in panels:
        style_axes(panel)
    add_title(figure, title)
    _plot_returns(panels[0], returns, _series(episodes, "eval/return"), window or max(5, len(returns) // 20))
    if best:
        _plot_best(panels[1], best, references or {})
    if epsilon:
        panels[-1].plot(list(epsilon), list(epsilon.values()), color=GREEN, linewidth=1.5)
        panels[-1].set_ylabel("Exploration ε", color=INK)
        panels[-1].set_ylim(-0.04, 1.04)
    panels[-1].set_xlabel("Episode", color=INK)
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    figure.align_ylabels()
    save_figure(figure, path)


def plot_layers(
    path: str | Path, layers: Sequence[LayerRow], *, title: str = "Layers before and after pruning"
) -> None:
    """Plot filters and MACs of every layer as bars: the original network pale, the pruned network solid on top.

    The height of the plot grows with the number of layers.

    Args:
        path: The file to write.
        layers: The layers, from top to bottom.
        title: Title of the plot.

    Raises:
        ValueError: There are no layers.
        ImportError: Matplotlib is not installed.
    """
    if not layers:
        raise ValueError("layers must have at least one LayerRow; got none")
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
    cost: str = "MACs",
    title: str = "Every evaluated plan",
) -> None:
    """Plot accuracy against MACs of all plans, coloured by the order of evaluation.

    With a budget, all plans have nearly the same MACs. The plot then shows that narrow range and draws the original
    network as a horizontal line. A few plans far below all others are marked at the lower edge. Networks at the same
    point share one marker.

    Args:
        path: The file to write.
        points: MACs ratio and accuracy of every plan, both as fractions, in the order of evaluation.
        marked: MACs ratio and accuracy of the network "original" and optionally of "winner" and "uniform".
        budget: Target as a fraction of the original network's cost, or None.
        cost: What the first number of every point is a ratio of.
        title: Title of the plot.

    Raises:
        ValueError: There are no points.
        ImportError: Matplotlib is not installed.
    """
    if not points:
        raise ValueError("points must have the MACs ratio and accuracy of at least one plan; got none")
    figure = new_figure(7.5, 5.2)
    axes = figure.add_subplot()
    style_axes(axes)
    x, y = [100 * macs for macs, _ in points], [100 * accuracy for _, accuracy in points]
    count = len(points)
    colours: dict[str, Any] = {"c": range(1, count + 1), "cmap": "viridis", "vmin": 1, "vmax": max(2, count)}
    dots = axes.scatter(x, y, s=18, linewidths=0, alpha=0.85, zorder=2, **colours)
    original = marked["original"]
    others = [100 * place[0] for name, place in marked.items() if name != "original"]
    near = _set_macs_range(axes, [*x, *others, *([] if budget is None else [100 * budget])], 100 * original[0])
    if not near:
        label = f"original: {percent(original[1], 1)} (at {percent(original[0], 0)} of {cost})"
        axes.axhline(100 * original[1], color=INK, linewidth=1.2, linestyle="--", label=label)
    _plot_marked(axes, {name: marked[name] for name in MARKERS if name in marked and (near or name != "original")})
    if budget is not None:
        label = f"budget: {100 * budget:g} %"
        axes.axvline(100 * budget, color=GREY, linewidth=1.4, linestyle=":", zorder=1, label=label)
        # Without a budget, a low accuracy can be due to few MACs, so that the plan belongs in the plot.
        _leave_out_the_lowest(axes, x, y, [100 * place[1] for place in marked.values()], "{:.1f} %")
    axes.set_xlabel(f"{cost[0].upper()}{cost[1:]}, % of the original", color=INK)
    axes.set_ylabel("Accuracy on reward images, %", color=INK)
    _add_order_bar(figure, axes, dots, count)
    add_title(figure, title)
    add_legend(axes)
    save_figure(figure, path)


def plot_front(
    path: str | Path, lines: Mapping[str, Sequence[NetworkRow]], *, title: str = "One search for all budgets"
) -> None:
    """Plot test accuracy against MACs and against latency, one line per method.

    Args:
        path: The file to write.
        lines: The networks of each method; the first network of every method is the original one.
        title: Title of the plot.

    Raises:
        ValueError: There are no lines.
        ImportError: Matplotlib is not installed.
    """
    if not lines:
        raise ValueError("lines must have the networks of at least one method; got none")
    figure = new_figure(9.0, 4.2)
    panels = figure.subplots(1, 2, sharey=True)
    original = next(iter(lines.values()))[0]
    measures = {
        "MACs, % of the original": lambda row: 100 * row.macs / original.macs,
        f"Latency at batch size {original.batch_size}, % of the original": lambda row: (
            100 * row.latency_batch_ms / original.latency_batch_ms
        ),
    }
    for axes, (label, measure) in zip(panels, measures.items(), strict=True):
        style_axes(axes)
        for (name, networks), colour, marker in zip(lines.items(), (PURPLE, ORANGE, BLUE, GREEN), "so^v", strict=False):
            rows = sorted((row for row in networks[1:] if row.accuracy is not None), key=measure)
            y = [100 * (row.accuracy or 0.0) for row in rows]
            axes.plot([measure(row) for row in rows], y, marker=marker, color=colour, label=name)
        axes.scatter([100], [100 * (original.accuracy or 0.0)], marker="D", color=INK, label=original.name, zorder=4)
        axes.set_xlabel(label, color=INK)
    panels[0].set_ylabel("Test accuracy, %", color=INK)
    add_title(figure, title)
    add_legend(panels[0])
    save_figure(figure, path)


def _set_macs_range(axes: Axes, macs: Sequence[float], original: float) -> bool:
    """Set the horizontal range to all of `macs`, and to `original` if it is near; return whether it is."""
    low, high = min(macs), max(macs)
    near = original - high < 3 * max(high - low, 1.0)
    if near:
        low, high = min(low, original), max(high, original)
    margin = max(0.06 * (high - low), 0.25 - (high - low) / 2)  # the range is at least half a percentage point
    axes.set_xlim(low - margin, high + margin)
    return near


def _plot_marked(axes: Axes, marked: Mapping[str, tuple[float, float]]) -> None:
    """Mark networks; those at the same point share the marker of the first one, because one would hide the other."""
    for name, place in marked.items():
        names = [other for other in marked if marked[other] == place]
        if name != names[0]:
            continue
        marker, colour, size = MARKERS[name]
        style: dict[str, Any] = {"marker": marker, "color": colour, "s": size, "edgecolors": "white"}
        style["zorder"] = 5 if name == "winner" else 4  # a square below the star stays visible, but not above it
        axes.scatter([100 * place[0]], [100 * place[1]], label=f"{' = '.join(names)}: {percent(place[1], 1)}", **style)


def _add_order_bar(figure: Figure, axes: Axes, dots: PathCollection, count: int) -> None:
    """Add a colour bar for the order of evaluation of `count` plans."""
    ticks = sorted({1, *(count * quarter // 4 for quarter in range(1, 5))} - {0})
    bar = figure.colorbar(dots, ax=axes, pad=0.02, aspect=30, ticks=ticks)
    bar.set_label("Order of evaluation", color=INK)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=GREY, labelsize=8, labelcolor=INK)


def _leave_out_the_lowest(axes: Axes, x: list[Any], y: list[float], shown: Sequence[float], written: str) -> None:
    """Mark a few very low points at the lower edge if showing them would squeeze all others.

    Every value of `shown` stays in the plot. `written` is the format of a value.
    """
    high, low = max(*y, *shown), min(sorted(y)[len(y) // 20], *shown)
    spread = max(high - low, 0.02 * (high - min(y)))  # above 0 even if all other points are equal
    edge = low - 0.15 * spread
    lost = [place for place, value in zip(x, y, strict=True) if value < edge]
    if not lost or high - min(y) < 2 * (high - low):
        return
    label = f"{len(lost)} further down, to {written.format(min(y))}"
    axes.plot(lost, [edge] * len(lost), "v", color=GREY, markersize=4, label=label)
    axes.set_ylim(edge - 0.04 * spread, high + 0.06 * spread)


def _plot_returns(axes: Axes, returns: Mapping[int, float], evaluations: Mapping[int, float], window: int) -> None:
    """Plot the return of every episode, its running mean and the greedy evaluations."""
    x, y = list(returns), list(returns.values())
    axes.plot(x, y, ".", color=BLUE, alpha=0.35, markersize=5, markeredgewidth=0, label="episode")
    smooth = _running_mean(y, min(window, len(y)))
    axes.plot(x[-len(smooth) :], smooth, color=BLUE, linewidth=1.8, label=f"mean of the last {window}")
    if evaluations:
        style: dict[str, Any] = {"color": ORANGE, "linewidth": 1.2, "marker": "D", "markersize": 4}
        axes.plot(list(evaluations), list(evaluations.values()), label="greedy evaluation", **style)
    axes.set_ylabel("Return", color=INK)
    _leave_out_the_lowest(axes, x, y, [*smooth, *evaluations.values()], "{:.3g}")
    add_legend(axes)


def _plot_best(axes: Axes, best: Mapping[int, float], references: Mapping[str, float]) -> None:
    """Plot the best accuracy so far, and every reference as a horizontal line."""
    y = [100 * accuracy for accuracy in best.values()]
    axes.step(list(best), y, where="post", color=BLUE, linewidth=1.8, label=f"best so far: {y[-1]:.1f} %", zorder=3)
    styles = itertools.cycle(itertools.product(("--", "-.", ":"), (ORANGE, PURPLE, INK)))
    for (name, accuracy), (dashes, colour) in zip(references.items(), styles, strict=False):
        label = f"{name}: {percent(accuracy, 1)}"
        axes.axhline(100 * accuracy, color=colour, linewidth=1.2, linestyle=dashes, label=label)
    axes.set_ylabel("Best accuracy on\nreward images, %", color=INK)
    add_legend(axes)


def _plot_bars(axes: Axes, pairs: Sequence[tuple[float, float]], colour: str, notes: Sequence[str]) -> None:
    """Plot pairs of numbers, before and after pruning, as horizontal bars with a note at the end of each."""
    style_axes(axes)
    axes.grid(False)  # not needed, as the notes give the numbers
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
    """Return the values of a key by episode, in the order of episodes."""
    values = {row["episode"]: row[key] for row in rows if "episode" in row and row.get(key) is not None}
    return dict(sorted(values.items()))


def _running_mean(values: Sequence[float], window: int) -> list[float]:
    """Return the means of every `window` successive values."""
    sums = [0.0, *itertools.accumulate(values)]
    return [(sums[i] - sums[i - window]) / window for i in range(window, len(sums))]
