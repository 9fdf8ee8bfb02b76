"""Networks pruned by other packages: the same weights, images and budget as our plans, and the same training after.

Torch-Pruning (Fang et al., CVPR 2023, arXiv:2301.12900) cuts by a norm of weights; FastNAS of nvidia-modelopt searches
with an accuracy. Neither can cut the streams of residual networks whose shortcuts pad with zeros; there they cut the
insides of blocks.
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from prune_env import FilterPruneEnv
from prune_env.common.memory_format import in_layout
from prune_env.scoring.metric import count_correct

CALIBRATION_BATCHES = 50
"""FastNAS estimates no BatchNorm statistics from fewer batches."""


class Rival(NamedTuple):
    """A pruned network, and what it took to find it."""

    network: nn.Module
    evaluations: int | None
    """Looks at an accuracy; None if they are not known."""


def torch_pruning(env: FilterPruneEnv, target: float, *, grouped: bool, everywhere: bool) -> Rival:
    """Prune with Torch-Pruning to the largest network within the budget.

    Args:
        env: The environment.
        target: Fraction of the MACs that may stay.
        grouped: Rank filters by the norm of all weights of their group, instead of by their own L1 norm.
        everywhere: Rank the filters of all layers together, instead of cutting all layers by the same fraction.
    """
    import torch_pruning as tp

    importance = tp.importance.GroupMagnitudeImportance(p=2) if grouped else tp.importance.MagnitudeImportance(p=1)
    example = env.problem.data.example_input
    tied = {layer for group in env.problem.groups if len(group.layers) > 1 for layer in group.layers}
    low, high, best = 0.0, 1.0, env.problem.model
    for _ in range(12):
        ratio = (low + high) / 2
        network = copy.deepcopy(env.problem.model)
        heads = [module for module in network.modules() if isinstance(module, nn.Linear)]
        pruner = tp.pruner.BasePruner(
            network,
            example,
            importance,
            global_pruning=everywhere,
            pruning_ratio=ratio,
            ignored_layers=[*heads, *(network.get_submodule(layer) for layer in tied)],
        )
        pruner.step()
        small = macs_ratio(env, network) <= target
        low, high = (low, ratio) if small else (ratio, high)
        best = network if small else best
    return Rival(best, 0)


def fastnas(env: FilterPruneEnv, target: float) -> Rival:
    """Search with FastNAS for the network of the highest accuracy on the reward images of a search."""
    import modelopt.torch.prune as mtp

    data, looks = env.problem.data, 0
    generator = torch.Generator().manual_seed(0)
    size = max(2, len(data.calibration) // CALIBRATION_BATCHES)
    augmented = (data.augmented(images, generator) for images, _ in data.calibration.batches(size))
    batches = [in_layout(images, torch.channels_last) for images in augmented]
    split = data.reward.select(data.reward.balanced_rows(env.config.reward_images))
    reward = [(in_layout(data.normalise(images), torch.channels_last), labels) for images, labels in split.batches(250)]

    def score(network: nn.Module) -> float:
        nonlocal looks
        looks += 1
        return count_correct(network, reward) / len(split)

    widths = tuple(step / 20 for step in range(1, 21))
    space: dict[str, Any] = {
        "nn.Conv2d": {"*": {"channels_ratio": widths, "channel_divisor": 1}},
        "nn.BatchNorm2d": {"*": {"features_ratio": widths, "feature_divisor": 1}},
    }
    settings = {"data_loader": batches, "collect_func": lambda images: (images,), "score_func": score}
    with contextlib.redirect_stdout(io.StringIO()), torch.random.fork_rng():
        torch.manual_seed(0)
        network, _ = mtp.prune(
            model=copy.deepcopy(env.problem.model),
            mode=[("fastnas", space)],
            constraints={"flops": f"{100 * target}%"},
            dummy_input=data.example_input,
            config=settings | {"checkpoint": None, "verbose": False},
        )
    return Rival(network, looks)


RIVALS: dict[str, Callable[[FilterPruneEnv, float], Rival]] = {
    "torch_pruning_uniform": partial(torch_pruning, grouped=False, everywhere=False),
    "torch_pruning_global": partial(torch_pruning, grouped=False, everywhere=True),
    "torch_pruning_group_norm": partial(torch_pruning, grouped=True, everywhere=True),
    "fastnas": fastnas,
}
"""Name -> how to make the network."""


def macs_ratio(env: FilterPruneEnv, network: nn.Module) -> float:
    """Return the MACs of a network as a fraction of the original network's."""
    image = env.problem.data.example_input[:1]
    return _macs(network, image) / _macs(env.problem.model, image)


def filters(network: nn.Module) -> list[int]:
    """Return the number of filters of every convolution."""
    return [module.out_channels for module in network.modules() if isinstance(module, nn.Conv2d)]


def _macs(network: nn.Module, image: torch.Tensor) -> int:
    """Return the MACs of a network in eval mode for an image [1, C, H, W]."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(image)
    return counter.get_total_flops() // 2
