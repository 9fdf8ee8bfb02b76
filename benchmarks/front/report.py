"""The table and the plot of the front comparison.

Letters: S seeds, B budgets, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prune_env.common.figure_style import (
    COLOURS,
    INK,
    add_legend,
    add_title,
    new_figure,
    save_figure,
    style_axes,
)
from prune_env.common.files import replacing

from ..compare.statistics import BOUNDS, iqm, resampled, stratified_interval

OURS = "qmix_planned"
"""The method that the others are compared with."""


def write(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write front.md and front.png, and print the table."""
    text = table(rows)
    with replacing(folder / "front.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text)
    plot(folder / "front.png", rows)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return a Markdown table: one row per method, interquartile means over seeds with bootstrap intervals."""
    seen = [f"{100 * float(target):g} %" for target in rows[0]["accuracies"]]
    lines = [
        f"| method | evaluations | seeds | {' | '.join(seen)} | mean | unseen budgets | seconds |",
        "|---" * (len(seen) + 6) + "|",
    ]
    for (method, _), group in _grouped(rows).items():
        values, unseen = (_values(group, name) for name in ("accuracies", "unseen_accuracies"))
        cells = [f"{100 * iqm(column):.1f}" for column in values.T]
        evaluations = max(row["evaluations"] for row in group)
        seconds = np.median([row["seconds"] for row in group])
        lines.append(
            f"| {method} | {evaluations} | {len(group)} | {' | '.join(cells)} | {_with_interval(values)} | "
            f"{_with_interval(unseen)} | {seconds:.0f} |"
        )
    return "\n".join([*lines, "", *_differences(rows)]) + "\n"


def plot(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Plot accuracy against MACs, one line per method."""
    figure = new_figure(7.5, 5.0)
    axes = figure.add_subplot()
    style_axes(axes)
    for number, ((method, plans), group) in enumerate(_grouped(rows).items()):
        values = _values(group, "accuracies")
        x = [100 * float(target) for target in group[0]["accuracies"]]
        y = [100 * iqm(column) for column in values.T]
        style = "--" if len(group) == 1 else "-"
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(x, y, style, marker="o", markersize=4, color=colour, label=f"{method}, {plans} evaluations")
    axes.set_xlabel("MACs, % of the original", color=INK)
    axes.set_ylabel("Accuracy on reward images, %", color=INK)
    add_title(figure, "Best plan for each budget")
    add_legend(axes)
    save_figure(figure, path)


def _differences(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return lines with the mean difference of OURS to each other method, over seen and over unseen budgets."""
    groups = _grouped(rows)
    ours = [(key, group) for key, group in groups.items() if key[0] == OURS]
    lines = []
    for (_, plans), group in ours:
        for (method, other_plans), other in groups.items():
            if method == OURS:
                continue
            for name, label in (("accuracies", "seen"), ("unseen_accuracies", "unseen")):
                low, value, high = _difference(_values(group, name), _values(other, name))
                lines.append(
                    f"- {OURS} ({plans}) minus {method} ({other_plans}), {label} budgets: {100 * value:+.1f} "
                    f"[{100 * low:+.1f}, {100 * high:+.1f}]"
                )
    return lines


def _difference(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float, float]:
    """Return the difference of the mean interquartile means, [S, B] each, with its stratified bootstrap interval."""
    rng = np.random.default_rng(0)
    low, high = np.quantile(resampled(ours, rng) - resampled(theirs, rng), BOUNDS)
    value = np.mean([iqm(column) for column in ours.T]) - np.mean([iqm(column) for column in theirs.T])
    return float(low), float(value), float(high)


def _with_interval(values: np.ndarray) -> str:
    low, high = stratified_interval(values)
    middle = 100 * float(np.mean([iqm(column) for column in values.T]))
    return f"{middle:.1f}" if np.isnan(low) else f"{middle:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _grouped(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """Return the rows by method and evaluations."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["method"], row["max_plans"]), []).append(row)
    return groups


def _values(group: Sequence[dict[str, Any]], name: str) -> np.ndarray:
    return np.array([list(row[name].values()) for row in group], float)  # [S, B]
