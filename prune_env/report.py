"""What a reader wants to see of a run: the table of networks, and three pictures.

Pictures use matplotlib's objects with the Agg canvas and colours of their own: no pyplot, no global settings.
Colours are Okabe and Ito's, and viridis: told apart by colour-blind readers and in grey.
"""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 110
"""Columns that a table may take."""
CONVENTION = "MACs: multiply-accumulates of convolution and linear layers, one input; FLOPs = 2 x MACs."

BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
PALE = {BLUE: "#C6DDEC", GREEN: "#C6E8DC"}
INK, GREY, FAINT = "#222222", "#767676", "#DDDDDD"


@dataclass(frozen=True)
class NetworkFigures:
    """One line of the table. Raises ValueError that names the field."""

    name: str
    accuracy: float | None
    """fraction of the test images; None where it was not measured"""
    macs: int
    params: int
    file_bytes: int
    latency_1_ms: float
    """median at batch size 1"""
    latency_100_ms: float
    """median at batch size 100"""
    short_accuracy: float | None = None
    """before distillation"""
    onnx_bytes: int | None = None
    onnx_latency_1_ms: float | None = None
    """median of onnxruntime at batch size 1"""
    onnx_latency_100_ms: float | None = None
    """median of onnxruntime at batch size 100"""

    def __post_init__(self) -> None:
        for name in ("accuracy", "short_accuracy"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} of {self.name!r} must be a fraction between 0 and 1, got {value}")
        optional = ("onnx_bytes", "onnx_latency_1_ms", "onnx_latency_100_ms")
        for name in ("macs", "params", "file_bytes", "latency_1_ms", "latency_100_ms", *optional):
            value = getattr(self, name)
            if not (value is None and name in optional) and not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} of {self.name!r} must be above 0 and finite, got {getattr(self, name)}")


@dataclass(frozen=True)
class LayerFigures:
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


def table(rows: Sequence[NetworkFigures]) -> str:
    """Networks as aligned plain text of at most 110 columns; the first one is the original that ratios refer to.

    Units are the original's: what stands below each other compares. Where every row has ONNX figures, files and
    latencies stand in a block of their own. Raises ValueError if there are no rows.
    """
    if not rows:
        raise ValueError("a table needs at least one network; the first is the original")
    original = rows[0]
    macs_unit, macs = _scale(original.macs)
    params_unit, params = _scale(original.params)
    file_unit, size = ("MiB", 2**20) if original.file_bytes >= 2**20 else ("KiB", 2**10)
    columns = [["", "Accuracy", *_percents([row.accuracy for row in rows])]]
    if any(row.short_accuracy is not None for row in rows):
        columns.append(["Before", "distil.", *_percents([row.short_accuracy for row in rows])])
    columns += [
        ["", f"MACs{macs_unit}", *_with_ratios([row.macs / macs for row in rows], 1)],
        ["", f"Params{params_unit}", *_with_ratios([row.params / params for row in rows], 1)],
    ]
    files = _with_ratios([row.file_bytes / size for row in rows], 1)
    latencies = [_with_ratios([getattr(row, f"latency_{batch}_ms") for row in rows], 0) for batch in (1, 100)]
    onnx = [
        [value for row in rows if (value := getattr(row, name)) is not None]
        for name in ("onnx_bytes", "onnx_latency_1_ms", "onnx_latency_100_ms")
    ]
    notes = [CONVENTION, "In parentheses: share of the original. Latency: median forward pass."]
    if any(len(values) < len(rows) for values in onnx):
        columns += [
            ["", f"File, {file_unit}", *files],
            ["Latency, ms", "batch 1", *latencies[0]],
            ["Latency, ms", "batch 100", *latencies[1]],
        ]
        blocks = [columns]
    else:
        deployment = [
            [f"File, {file_unit}", "weights", *files],
            [f"File, {file_unit}", "ONNX", *_with_ratios([value / size for value in onnx[0]], 1)],
            ["torch, ms", "batch 1", *latencies[0]],
            ["torch, ms", "batch 100", *latencies[1]],
            ["ONNX, ms", "batch 1", *_with_ratios(onnx[1], 0)],
            ["ONNX, ms", "batch 100", *_with_ratios(onnx[2], 0)],
        ]
        blocks = [columns, deployment]
        notes[1] = "In parentheses: share of the original. Latency: median forward pass; ONNX by onnxruntime."
        if max(onnx[2]) > 1.05 * onnx[2][0]:
            notes.append("Slower with fewer MACs: odd filter counts are; --round-to 8 keeps multiples of 8.")
    names = [row.name for row in rows]
    return "\n\n".join([*(_block(names, block) for block in blocks), "\n".join(notes)])


def _block(names: Sequence[str], columns: Sequence[Sequence[str]]) -> str:
    """Columns beside the networks' names; two cells of a column are its heading."""
    widths = [max(map(len, column)) for column in columns]
    left = max(8, WIDTH - sum(widths) - 2 * len(widths))
    wrapped = [_lines(name, left) for name in names]
    left = max(len(line) for lines in (*wrapped, ["Network"]) for line in lines)
    lines = []
    for number, (name, *rest) in enumerate([[""], ["Network"], *wrapped]):
        cells = [column[number].rjust(width) for column, width in zip(columns, widths, strict=True)]
        lines += ["  ".join((name.ljust(left), *cells)).rstrip(), *rest]
    lines.insert(2, "-" * (left + sum(widths) + 2 * len(widths)))
    return "\n".join(lines)


def _lines(name: str, width: int) -> list[str]:
    """A name in lines of at most `width`; a word that is longer begins a line of its own."""
    words = [word[start : start + width] for word in name.split() for start in range(0, len(word), width)]
    return textwrap.wrap(" ".join(words), width, break_on_hyphens=False) or [""]


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
        _dress(panel)
    _heading(figure, title)
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
    _legend(upper)
    if best:
        _plot_best(rest.pop(0), best, references or {})
    if epsilon:
        rest[0].plot(list(epsilon), list(epsilon.values()), color=GREEN, linewidth=1.5)
        rest[0].set_ylabel("Exploration ε", color=INK)
        rest[0].set_ylim(-0.04, 1.04)
    panels[-1].set_xlabel("Episode", color=INK)
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    figure.align_ylabels()
    _save(figure, path)


def plot_layers(
    path: str | Path, layers: Sequence[LayerFigures], *, title: str = "Layers before and after pruning"
) -> None:
    """Filters and MACs of every layer, the original faint and the pruned network solid on top, in the order given.

    The picture grows with the number of layers. Raises ValueError if there are none.
    """
    if not layers:
        raise ValueError("nothing to plot: layers is empty")
    figure = new_figure(9.0, 1.3 + 0.2 * len(layers))
    left, right = figure.subplots(1, 2, sharey=True)
    unit, scale = _scale(max(layer.macs_before for layer in layers))
    macs = [(layer.macs_before, layer.macs_after) for layer in layers]
    filters = [(layer.filters_before, layer.filters_after) for layer in layers]
    _plot_bars(left, filters, BLUE, [f"{after} of {before}" for before, after in filters])
    percents = [_percent(after / before, 0) for before, after in macs]
    _plot_bars(right, [(before / scale, after / scale) for before, after in macs], GREEN, percents)
    left.set_yticks(range(len(layers)), [f"{layer.name} · {layer.agent}" for layer in layers])
    left.set_ylim(len(layers) - 0.4, -0.6)
    before, after = sum(pair[0] for pair in macs), sum(pair[1] for pair in macs)
    left.set_xlabel("Filters", color=INK)
    right.set_xlabel(f"MACs{unit} (layers shown: {_percent(after / before, 1)} stay)", color=INK)
    right.tick_params(labelleft=False)
    _heading(figure, title)
    _save(figure, path)


def plot_tradeoff(
    path: str | Path,
    points: Sequence[tuple[float, float]],
    original: tuple[float, float],
    winner: tuple[float, float] | None = None,
    uniform: tuple[float, float] | None = None,
    *,
    budget: float | None = None,
    title: str = "Every plan that was evaluated",
) -> None:
    """Accuracy against MACs of all plans, coloured in the order of evaluation.

    Every pair is (MACs as a fraction of the original's, accuracy as a fraction), all accuracies measured alike.
    With a budget all plans cost nearly the same; then the picture shows that narrow range, and the original, far to
    the right, as a horizontal line, and a few plans far below all others are told by marks at the lower edge. What lies
    in one place is one mark with all names.

    Raises ValueError if there are no points.
    """
    if not points:
        raise ValueError("nothing to plot: points is empty; give (macs_ratio, accuracy) of every evaluated plan")
    figure = new_figure(7.5, 5.2)
    axes = figure.add_subplot()
    _dress(axes)
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
        label = f"original: {_percent(original[1], 1)} (at {_percent(original[0], 0)} of MACs)"
        axes.axhline(100 * original[1], color=INK, linewidth=1.2, linestyle="--", label=label)
    for name, pair, marker, colour, size in marks:
        names = [other for other, place, *_ in marks if place == pair]
        if pair is not None and name == names[0]:  # the others in this place would hide it, or be hidden
            style: dict[str, Any] = {"marker": marker, "color": colour, "s": size, "edgecolors": "white"}
            style["zorder"] = 5 if name == "winner" else 4  # a star lets corners of what lies below be seen
            axes.scatter(
                [100 * pair[0]], [100 * pair[1]], label=f"{' = '.join(names)}: {_percent(pair[1], 1)}", **style
            )
    if budget is not None:
        label = f"budget: {100 * budget:g} %"
        axes.axvline(100 * budget, color=GREY, linewidth=1.4, linestyle=":", zorder=1, label=label)
        # Without one, low accuracy may be the price of few MACs.
        marked = [100 * pair[1] for pair in (original, winner, uniform) if pair is not None]
        _leave_out_the_lowest(axes, x, y, marked, "{:.1f} %")
    axes.set_xlabel("MACs, % of the original", color=INK)
    axes.set_ylabel("Accuracy on reward images, %", color=INK)
    ticks = sorted({1, *(count * quarter // 4 for quarter in range(1, 5))} - {0})
    bar = figure.colorbar(dots, ax=axes, pad=0.02, aspect=30, ticks=ticks)
    bar.set_label("Order of evaluation", color=INK)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=GREY, labelsize=8, labelcolor=INK)
    _heading(figure, title)
    _legend(axes)
    _save(figure, path)


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


def _save(figure: Figure, path: str | Path) -> None:
    path = Path(path)
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:] or "png", facecolor="white")


def _dress(axes: Axes) -> None:
    axes.set_facecolor("white")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=GREY, labelcolor=INK, labelsize=8)
    axes.grid(True, color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)


def _heading(figure: Figure, title: str) -> None:
    figure.suptitle(title, x=0.01, ha="left", color=INK, fontsize=11, fontweight="bold")


def _legend(axes: Axes) -> None:
    """Above the axes, where it hides nothing; in two columns if one row would be wider than the picture."""
    labels = axes.get_legend_handles_labels()[1]
    in_a_row = sum(len(label) + 7 for label in labels) <= 90  # 7: the mark and the gaps, in characters
    style: dict[str, Any] = {"fontsize": 8, "labelcolor": INK, "frameon": False, "borderaxespad": 0.2, "borderpad": 0.2}
    columns = len(labels) if in_a_row else 2
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=columns, handletextpad=0.5, **style)


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
        label = f"{name}: {_percent(accuracy, 1)}"
        axes.axhline(100 * accuracy, color=colour, linewidth=1.2, linestyle=dashes, label=label)
    axes.set_ylabel("Best accuracy on\nreward images, %", color=INK)
    _legend(axes)


def _plot_bars(axes: Axes, pairs: Sequence[tuple[float, float]], colour: str, notes: Sequence[str]) -> None:
    _dress(axes)
    axes.grid(False)  # the notes give the numbers
    rows, before, after = range(len(pairs)), [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    axes.barh(rows, before, height=0.76, color=PALE[colour], linewidth=0, label="original")
    axes.barh(rows, after, height=0.76, color=colour, linewidth=0, label="pruned")
    for row, (length, note) in enumerate(zip(before, notes, strict=True)):
        offset: dict[str, Any] = {"xytext": (3, 0), "textcoords": "offset points"}
        axes.annotate(note, (length, row), va="center", color=INK, fontsize=7, **offset)
    axes.set_xlim(0, 1.2 * max(before))
    axes.tick_params(axis="y", length=0)
    _legend(axes)


def _series(rows: Sequence[Mapping[str, Any]], key: str) -> dict[int, float]:
    """Episode -> value, in the order of episodes."""
    values = {row["episode"]: row[key] for row in rows if "episode" in row and row.get(key) is not None}
    return dict(sorted(values.items()))


def _running_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean of the last `window` values, from where there are as many."""
    sums = [0.0, *itertools.accumulate(values)]
    return [(sums[i] - sums[i - window]) / window for i in range(window, len(sums))]


def _scale(largest: float) -> tuple[str, float]:
    """The unit, as the end of a heading, and the divisor that leaves at least 1."""
    for unit, divisor in ((", G", 1e9), (", M", 1e6), (", k", 1e3)):
        if largest >= divisor:
            return unit, divisor
    return "", 1.0


def _with_ratios(values: Sequence[float], decimals: int) -> list[str]:
    """Numbers in one precision, each but the first with its ratio to the first."""
    digits = 1 if values[0] >= 100 else 2
    ratios = [f"({_percent(value / values[0], decimals)})" for value in values[1:]]
    width = max((len(ratio) for ratio in ratios), default=-1)
    cells = zip(values, ["", *ratios], strict=True)
    return [f"{value:.{digits}f}" + ratio.rjust(1 + width) for value, ratio in cells]


def _percents(fractions: Sequence[float | None]) -> list[str]:
    return ["-" if fraction is None else _percent(fraction, 2) for fraction in fractions]


def _percent(fraction: float, decimals: int) -> str:
    return f"{100 * fraction:.{decimals}f} %"
