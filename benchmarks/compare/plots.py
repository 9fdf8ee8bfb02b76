"""Plots of a comparison. A method has the same colour and line style in all of them.

Methods that learn in the environment have solid lines and circles, other searches have dashed lines and triangles, and
methods that evaluate one plan have dotted lines and squares. The colours are those of Okabe and Ito, then of Tol.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from prune_env.common.figure_style import FAINT, GREY, INK, new_figure

from .methods import ONE_PLAN
from .statistics import Mean, interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLES = {
    "qmix": ("#D55E00", "-"),
    "vdn": ("#E69F00", "-"),
    "iql": ("#CC79A7", "-"),
    "ppo": ("#0072B2", "-"),
    "dqn": ("#56B4E9", "-"),
    "amc": ("#009E73", "-"),
    "amc_ls": ("#66C9A8", "-"),
    "evolution": ("#332288", "--"),
    "evolution_least_change": ("#6A5ACD", "--"),
    "tpe": ("#882255", "--"),
    "random": ("#222222", "--"),
    "sensitivity": ("#8C510A", ":"),
    "least_change": ("#117733", ":"),
    "magnitude": ("#B38BC9", ":"),
    "uniform": ("#666666", ":"),
}
OTHER = ("#999999", "-")
MARKERS = {"-": "o", "--": "^", ":": "s"}
RESOLUTION = 150

Points = Mapping[str, Sequence[float]]
"""One number per seed, by method."""


def methods(panels: Mapping[str, Points], means: Mapping[str, Mapping[str, Mean]], label: str) -> Figure:
    """Plot means as diamonds, intervals as bars and single seeds as dots, with the best method on top of each panel.

    Args:
        panels: Results by panel title.
        means: Means and intervals by panel title and method.
        label: Label of the x axis.
    """
    rows = max(map(len, panels.values()))
    figure = new_figure(4.6 * len(panels), 1.2 + 0.27 * rows, RESOLUTION)
    for axes, (title, points) in zip(_panels(figure, len(panels)), panels.items(), strict=True):
        order = sorted(points, key=lambda name: means[title][name].value)
        for row, name in enumerate(order):
            colour, found = _style(name)[0], means[title][name]
            values = 100 * np.array(points[name])
            axes.plot(values, [row] * len(values), "o", color=colour, alpha=0.35, markersize=4, markeredgewidth=0)
            axes.plot([100 * found.low, 100 * found.high], [row, row], color=colour, linewidth=2)
            axes.plot(100 * found.value, row, "D", color=colour, markersize=5)
        axes.set_yticks(range(len(order)), order)
        axes.set_xlabel(label, color=INK, fontsize=8)
        axes.set_title(title, loc="left", color=INK, fontsize=9)
    return figure


def front(means: Mapping[str, Mapping[float, Mean]], original: float | None, label: str) -> Figure:
    """Plot accuracy against MACs, with intervals. Methods are shifted slightly so that they do not overlap.

    Args:
        means: Means by method and fraction of the MACs; at least two fractions.
        original: Accuracy of the original network.
        label: Label of the y axis.
    """
    figure = new_figure(7.5, 4.4, RESOLUTION)
    (axes,) = _panels(figure, 1)
    shares = sorted({share for points in means.values() for share in points})
    gap = 100 * min(np.diff(shares)) * 0.1
    for number, (name, points) in enumerate(means.items()):
        colour, dashes = _style(name)
        shift = gap * (number / max(1, len(means) - 1) - 0.5)
        x, found = [100 * share + shift for share in sorted(points)], [points[share] for share in sorted(points)]
        y = np.array([100 * mean.value for mean in found])
        bounds = np.array([[100 * mean.low, 100 * mean.high] for mean in found])
        errors = np.abs(np.nan_to_num(bounds, nan=0) - y[:, None]).T * ~np.isnan(bounds.T)
        style = {"color": colour, "linestyle": dashes, "linewidth": 1.3, "marker": MARKERS[dashes], "markersize": 4}
        axes.errorbar(x, y, errors, elinewidth=1, capsize=2, label=name, **style)
    if original is not None:
        axes.axhline(100 * original, color=GREY, linewidth=1, label="original")
    axes.set_xticks([100 * share for share in shares], [f"{100 * share:g}" for share in shares])
    axes.set_xlabel("MACs that stay, % (methods side by side)", color=INK, fontsize=8)
    axes.set_ylabel(label, color=INK, fontsize=8)
    _legend(figure, [axes])
    return figure


def curves(
    panels: Mapping[str, Mapping[str, Sequence[Sequence[float]]]], optimum: Mapping[str, float | None]
) -> Figure:
    """Plot the mean and the interval of the best accuracy after each evaluation.

    Args:
        panels: One curve per seed, by panel title and method. Methods that evaluate one plan are horizontal lines.
        optimum: The best accuracy of any plan by panel title, if it is known.
    """
    figure = new_figure(5.2 * len(panels) + 1.2, 4.2, RESOLUTION)
    axes_of = _panels(figure, len(panels))
    for axes, (title, methods) in zip(axes_of, panels.items(), strict=True):
        length = max(len(curve) for seeds in methods.values() for curve in seeds)
        floor = []
        for name, seeds in methods.items():
            colour, dashes = _style(name)
            padded = 100 * np.array([[*curve, *[curve[-1]] * (length - len(curve))] for curve in seeds])  # [S, E]
            if name in ONE_PLAN:  # the line starts where the plan has been evaluated
                known, found = min(map(len, seeds)), padded[:, -1].mean()
                axes.plot(
                    [known, max(length, known + 1)],
                    [found] * 2,
                    color=colour,
                    linestyle=dashes,
                    linewidth=1.2,
                    label=name,
                )
                continue
            steps, middle = np.arange(1, length + 1), padded.mean(0)
            low, high = interval(padded)
            axes.step(steps, middle, where="post", color=colour, linestyle=dashes, linewidth=1.5, label=name)
            axes.fill_between(steps, low, high, step="post", color=colour, alpha=0.12, linewidth=0)
            floor.append(middle[min(length - 1, length // 20)])
        if optimum.get(title) is not None:
            axes.axhline(100 * optimum[title], color=INK, linewidth=0.8, label="optimum")
        if floor:
            top = min(axes.get_ylim()[1], 100)
            bottom = min(floor) - 0.05 * (top - min(floor))
            axes.set_ylim(bottom, top)
            for line in axes.lines:
                if max(line.get_ydata()) < bottom:
                    line.set_label(f"{line.get_label()} (further down)")
        axes.set_xlabel("Distinct plans evaluated", color=INK, fontsize=8)
        axes.set_title(title, loc="left", color=INK, fontsize=9)
    axes_of[0].set_ylabel("Best accuracy on the reward images, %", color=INK, fontsize=8)
    _legend(figure, axes_of)
    return figure


def heat_map(panels: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Plot the mean share of filters kept in each group, by panel title and method."""
    rows = max(map(len, panels.values()))
    columns = len(next(iter(next(iter(panels.values())).values())))
    figure = new_figure(1.6 + max(5.0, 0.42 * columns), 0.5 + len(panels) * (0.8 + 0.24 * rows), RESOLUTION)
    for axes, (title, kept) in zip(_panels(figure, len(panels), vertical=True), panels.items(), strict=True):
        image = axes.imshow(100 * np.array(list(kept.values())), cmap="cividis", vmin=0, vmax=100, aspect="auto")
        for row, values in enumerate(kept.values()):
            for column, value in enumerate(values):
                colour = INK if value > 0.6 else "white"
                axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=6, color=colour)
        axes.grid(False)
        axes.set_yticks(range(len(kept)), list(kept))
        axes.set_xticks(range(columns), [f"conv_{number}" for number in range(columns)], rotation=45, ha="right")
        axes.set_title(title, loc="left", color=INK, fontsize=9)
        bar = figure.colorbar(image, ax=axes, fraction=0.03, pad=0.01)
        bar.set_label("filters kept, %", fontsize=7)
        bar.ax.tick_params(labelsize=6)
    return figure


def correlation(panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], label: str) -> Figure:
    """Plot (search accuracy, accuracy after distillation) of single plans, by panel title and method."""
    figure = new_figure(4.4 * len(panels) + 1.2, 3.8, RESOLUTION)
    axes_of = _panels(figure, len(panels))
    for axes, (title, methods) in zip(axes_of, panels.items(), strict=True):
        for name, pairs in methods.items():
            (colour, dashes), (x, y) = _style(name), 100 * np.array(pairs, float).reshape(-1, 2).T
            style = {"linestyle": "none", "marker": MARKERS[dashes], "markersize": 4, "markeredgewidth": 0}
            axes.plot(x, y, color=colour, alpha=0.6, label=name, **style)
        axes.set_xlabel("Accuracy in the search, %", color=INK, fontsize=8)
        axes.set_title(title, loc="left", color=INK, fontsize=9)
    axes_of[0].set_ylabel(label, color=INK, fontsize=8)
    _legend(figure, axes_of)
    return figure


def _style(name: str) -> tuple[str, str]:
    return STYLES.get(name, OTHER)


def _panels(figure: Figure, count: int, vertical: bool = False) -> list[Axes]:
    shape = (count, 1) if vertical else (1, count)
    panels: list[Axes] = list(figure.subplots(*shape, squeeze=False).ravel())
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(GREY)
        axes.tick_params(colors=GREY, labelcolor=INK, labelsize=7)
        axes.grid(True, color=FAINT, linewidth=0.6)
        axes.set_axisbelow(True)
    return panels


def _legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """Draw one legend for all panels, outside of them."""
    found = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(found.values(), found, loc="outside right upper", fontsize=7, frameon=False, labelcolor=INK)
