"""Compare the time to cut a network by our index selection with copy, trace and prune of torch-pruning.

    python -m benchmarks.speed.surgery --repeats 7

All implementations get the same random plans in turn. The table shows medians and ratios of medians. `load` is the work
of every environment step: it folds and converts the weights of the plan and loads them into the evaluator's program.
`build` makes a new module.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
import tyro
from torch import nn

from prune_env.common.command import one_line_errors, require_packages
from prune_env.common.device import fast_dtype
from prune_env.common.settings import Count, Settings
from prune_env.evaluation.engine.program import Program
from prune_env.pruning import Plan, PruningGroup, build, find_groups

from ..make.zoo import check_names, make


@dataclass(frozen=True)
class Config(Settings):
    networks: tuple[str, ...] = ("vgg16", "resnet56", "mobilenet_v2")
    """Registered networks, networks of torchvision, or networks of timm as timm/NAME."""
    repeats: Count = 7
    """Number of random plans that are timed on each network."""


def main(config: Config) -> None:
    require_packages(["torch_pruning"], "the comparison", "benchmarks")
    check_names(config.networks)
    print("| network | load (ms) | build (ms) | copy + torch-pruning (ms) | traced before (ms) | / load | / build |")
    print("|---|---|---|---|---|---|---|")
    for name in config.networks:
        model, images = make(name)
        groups = find_groups(model, images)
        generator = torch.Generator().manual_seed(0)
        ranking = {g.name: torch.randperm(g.filters, generator=generator) for g in groups}
        program = Program(model, groups, images, dtype=fast_dtype())
        times: list[list[float]] = [[], [], [], []]
        for _ in range(config.repeats + 1):
            plan = tuple(int(torch.randint(g.filters // 4, g.filters + 1, (), generator=generator)) for g in groups)
            start = time.perf_counter()
            program.load(ranking, plan)
            loaded = time.perf_counter() - start
            for column, seconds in zip(times, (loaded, *times_of(model, images, groups, ranking, plan)), strict=True):
                column.append(1000 * seconds)
        load, ours, theirs, traced = (median(column[1:]) for column in times)  # the first round warms up
        figures = f"{load:.1f} | {ours:.1f} | {theirs:.1f} | {traced:.1f}"
        print(f"| {name} | {figures} | {theirs / load:.1f} | {theirs / ours:.1f} |", flush=True)


def times_of(
    model: nn.Module, images: torch.Tensor, groups: list[PruningGroup], ranking: dict[str, torch.Tensor], plan: Plan
) -> tuple[float, float, float]:
    """Return the seconds of `build`, of torch-pruning's copy, trace and prune, and of its copy and prune alone."""
    import torch_pruning as tp

    start = time.perf_counter()
    build(model, groups, ranking, plan)
    ours = time.perf_counter() - start
    start = time.perf_counter()
    pruned = copy.deepcopy(model)
    copied = time.perf_counter() - start
    graph = tp.DependencyGraph().build_dependency(pruned, images, verbose=False)
    traced = time.perf_counter()
    prune_along(graph, pruned, groups, ranking, plan)
    end = time.perf_counter()
    return ours, end - start, copied + end - traced


def prune_along(
    graph: Any, network: nn.Module, groups: Sequence[PruningGroup], ranking: Mapping[str, torch.Tensor], plan: Plan
) -> None:
    """Cut a network to a plan in place by torch-pruning; `graph` is the network's DependencyGraph."""
    for group, kept in zip(groups, plan, strict=True):
        layer = network.get_submodule(group.layers[0])
        gone = ranking[group.name][kept:].tolist()
        if gone:
            graph.get_pruning_group(layer, graph.get_pruner_of_module(layer).prune_out_channels, gone).prune()


if __name__ == "__main__":
    with one_line_errors():
        main(tyro.cli(Config, prog="python -m benchmarks.speed.surgery", description=__doc__))
