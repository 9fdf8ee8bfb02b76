"""Pictures of what pruned networks are worth: over the length of training, and over what is known before it.

Letters: E lengths of training, N networks.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from prune_env.common.figure_style import (
    BLUE,
    COLOURS,
    GREEN,
    INK,
    ORANGE,
    add_legend,
    add_title,
    new_figure,
    save_figure,
    style_axes,
)

from ..compare.methods.rules import RULES
from .signals import SIGNALS
from .worths import Worth

STYLES = [(colour, style) for style in ("-", "--", ":") for colour in COLOURS]
COLUMNS = 3


def over_epochs(worth: Worth, file: Path) -> None:
    """Plot the mean test accuracy over the epochs, of the networks that were trained for most lengths."""
    figure = new_figure(7.5, 5.0)
    axes = figure.add_subplot()
    style_axes(axes)
    means = np.array([worth.means(epochs) for epochs in worth.lengths])  # [E, N]
    trained = np.isfinite(means).sum(0)
    styles = dict(zip(worth.sources, itertools.cycle(STYLES), strict=False))
    labels = set()
    for number in np.flatnonzero(trained == trained.max()):
        source = worth.networks[number]["sources"][0]
        colour, style = styles[source]
        label = None if source in labels else source
        labels.add(source)
        axes.plot(worth.lengths, 100 * means[:, number], style, marker="o", markersize=4, color=colour, label=label)
    axes.set_xscale("log")
    axes.set_xticks(worth.lengths, [f"{epochs:g}" for epochs in worth.lengths])
    axes.minorticks_off()
    axes.set_xlabel("Epochs of distillation", color=INK)
    axes.set_ylabel("Test accuracy, %", color=INK)
    add_title(figure, f"{worth.problem['network']}, {100 * worth.target:g} % of the MACs")
    add_legend(axes)
    save_figure(figure, file)


def over_signals(worth: Worth, file: Path) -> None:
    """Plot the test accuracy of every network over each signal, after the training that most networks had."""
    epochs = worth.main_length
    test = 100 * worth.means(epochs)  # [N]
    kinds = {"searches and other packages": BLUE, "rules": GREEN, "drawn at random": ORANGE}
    kind = np.array([_kind(row["sources"]) for row in worth.networks])  # [N]
    lines = -(-len(SIGNALS) // COLUMNS)
    figure = new_figure(3.2 * COLUMNS, 2.6 * lines + 0.4)
    for number, (name, label) in enumerate(SIGNALS.items(), 1):
        axes = figure.add_subplot(lines, COLUMNS, number)
        style_axes(axes)
        values = worth.signal(name) * (100 if "accuracy" in name else 1)
        for one, colour in kinds.items():
            mine = kind == one
            axes.plot(values[mine], test[mine], "o", markersize=4, color=colour, label=one)
        axes.set_xlabel(label + (", %" if "accuracy" in name else ""), color=INK, fontsize=9)
        if number % COLUMNS == 1:
            axes.set_ylabel(f"Test accuracy, {epochs:g} epochs, %", color=INK, fontsize=9)
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower left", ncols=len(kinds), fontsize=8, frameon=False, labelcolor=INK)
    add_title(
        figure, f"{worth.problem['network']}, {100 * worth.target:g} % of the MACs: what is known before training"
    )
    save_figure(figure, file)


def _kind(sources: list[str]) -> str:
    """Return who made a network; its first source counts."""
    if sources[0] == "drawn":
        return "drawn at random"
    return "rules" if sources[0] in (*RULES, "narrow_stage") else "searches and other packages"
