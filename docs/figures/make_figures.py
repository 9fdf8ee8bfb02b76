"""Draw the figures of the documentation: `python docs/figures/make_figures.py` writes them into this folder.

- pruned_network.png: a network that a QMIX search found, the filters of every convolution before and after pruning.
- budget.png: how a plan is projected onto the MACs budget.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from prune_env.common.figure_style import BLUE, FAINT, GREEN, GREY, INK, ORANGE, new_figure, save_figure, style_axes
from prune_env.game.budget import Budget
from prune_env.networks import create
from prune_env.pruning import Cost, Plan, find_groups
from prune_env.pruning.limits import Limits

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HERE = Path(__file__).parent
ROWS = HERE.parents[1] / "benchmarks" / "results" / "resnet20-distilled.jsonl"
SEED = 0


def main() -> None:
    """Write both figures."""
    draw_pruned_network(HERE / "pruned_network.png")
    draw_budget(HERE / "budget.png")


def draw_pruned_network(file: Path) -> None:
    """Draw ResNet-20 as the comparison's QMIX run of the first seed pruned it to half of the MACs."""
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()]
    (row,) = [r for r in rows if (r["method"], r["target_macs"], r["seed"]) == ("qmix", 0.5, SEED)]
    groups = find_groups(create("resnet20"), torch.zeros(2, 3, 32, 32))
    layers = {
        layer: (group.filters, kept, len(group.layers) > 1)
        for group, kept in zip(groups, row["plan"], strict=True)
        for layer in group.layers
    }
    order = [name for name, module in create("resnet20").named_modules() if isinstance(module, torch.nn.Conv2d)]
    figure = new_figure(9.6, 3.4, 150)
    axes = figure.add_subplot()
    for x, name in enumerate(order):
        before, after, tied = layers[name]
        colour = GREEN if tied else BLUE
        axes.bar(x, before, 0.74, -before / 2, color=FAINT, linewidth=0)
        axes.bar(x, after, 0.74, -after / 2, color=colour, linewidth=0)
        axes.annotate(str(after), (x, before / 2 + 1.5), ha="center", color=INK, fontsize=8, fontweight="bold")
        axes.annotate(f"of {before}", (x, -before / 2 - 1.5), ha="center", va="top", color=GREY, fontsize=7)
    axes.set_axis_off()
    axes.set(xlim=(-0.7, len(order) - 0.3), ylim=(-52, 40))
    for x, text in ((0, "input"), (len(order) - 1, "classes")):
        axes.annotate(text, (x, -48), ha="center", color=GREY, fontsize=8)
    axes.annotate("", (len(order) - 2, -46.8), (1, -46.8), arrowprops={"arrowstyle": "->", "color": GREY})
    for label, colour in (("original network", FAINT), ("inside a residual block", BLUE), ("residual stream", GREEN)):
        axes.bar(-9, 0, color=colour, label=label)
    axes.legend(
        loc="upper left",
        frameon=False,
        fontsize=8,
        labelcolor=INK,
        title="Filters of each convolution",
        title_fontsize=9,
    )
    title = (
        f"ResNet-20 on CIFAR-10 with {100 * row['macs_ratio']:.1f} % of its MACs: test accuracy "
        f"{100 * row['test_accuracy']:.2f} % after two epochs of distillation (original "
        f"{100 * row['original_test_accuracy']:.2f} %)"
    )
    figure.suptitle(title, x=0.01, ha="left", color=INK, fontsize=10, fontweight="bold")
    save_figure(figure, file)


def draw_budget(file: Path) -> None:
    """Draw two projections on the small network: an action that overshoots, and a last round that falls short."""
    network = create("small_cnn", in_channels=1)
    example = torch.zeros(2, 1, 8, 8)
    groups = find_groups(network, example)
    cost = Cost(network, groups, example)
    full = tuple(group.filters for group in groups)
    budget = Budget(cost.macs, full, (0.0, 0.25, 0.5), 0.5, Limits(min_filters=2))
    overshoot = full, tuple(round(count * share) for count, share in zip(full, (0.4, 0.8, 0.5, 0.3, 0.6), strict=True))
    before = tuple(round(0.9 * count) for count in full)
    short = before, tuple(round(count * share) for count, share in zip(before, (0.9, 0.8, 1, 0.9, 0.7), strict=True))
    titles = (
        "A round that overshoots: the round's\nremovals are scaled down",
        "A last round that falls short: all removals\nso far are scaled up",
    )
    figure = new_figure(9.6, 3.6, 150)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, title, (previous, wanted), last in zip(panels, titles, (overshoot, short), (False, True), strict=True):
        projected = budget.project(previous, wanted, last)
        _draw_projection(axes, title, full, {"wanted": wanted, "applied": projected}, cost)
    panels[0].set_ylabel("Filters kept", color=INK, fontsize=9)
    save_figure(figure, file)


def _draw_projection(axes: Axes, title: str, full: Plan, plans: dict[str, Plan], cost: Cost) -> None:
    style_axes(axes)
    axes.grid(axis="x", visible=False)
    places = np.arange(len(full))
    axes.bar(places, full, 0.84, color=FAINT, linewidth=0, label="original: 100 % of the MACs")
    for shift, (name, plan), colour in zip((-0.2, 0.2), plans.items(), (ORANGE, BLUE), strict=True):
        label = f"{name}: {100 * cost.macs(plan) / cost.macs(full):.1f} %"
        axes.bar(places + shift, plan, 0.36, color=colour, linewidth=0, label=label)
        for x, count in zip(places + shift, plan, strict=True):
            axes.annotate(str(count), (x, count + 1), ha="center", color=INK, fontsize=7)
    axes.set_xticks(places, [f"conv_{number}" for number in places])
    axes.set_ylim(0, 142)
    axes.set_title(title, loc="left", color=INK, fontsize=10)
    axes.legend(loc="upper left", frameon=False, fontsize=8, labelcolor=INK)


if __name__ == "__main__":
    main()
