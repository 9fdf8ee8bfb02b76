"""Networks pruned by other packages: the same weights, images and budget as our plans, and the same training after.

Torch-Pruning (Fang et al., CVPR 2023, arXiv:2301.12900) cuts by a norm of weights; FastNAS of nvidia-modelopt searches
with an accuracy. Neither can cut the streams of residual networks whose shortcuts pad with zeros, and FastNAS leaves
the last convolution of a network whole. Their networks may cost some points of the MACs less than the budget, because
both take steps that are wider than a filter.
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
from prune_env.common.device import seeded
from prune_env.common.memory_format import in_layout
from prune_env.networks.resnet import ZeroPadShortcut
from prune_env.scoring.metric import count_correct

from ..compare.methods.rules import is_tied

CALIBRATION_BATCHES = 50
"""FastNAS estimates no BatchNorm statistics from fewer batches."""


class Rival(NamedTuple):
    """A network that another package pruned."""

    network: nn.Module
    evaluations: int
    """Looks at an accuracy that it took."""


def torch_pruning(env: FilterPruneEnv, target: float, importance: Callable[[], Any], *, everywhere: bool) -> Rival:
    """Prune with Torch-Pruning to the largest network within the budget.

    Args:
        env: The environment.
        target: Fraction of the MACs that may stay.
        importance: Makes the importance that ranks filters.
        everywhere: Rank the filters of all layers together, instead of cutting all layers by the same fraction.

    Raises:
        ValueError: It can make no network that is small enough.
    """
    import torch_pruning as tp

    model, example = env.problem.model, env.problem.data.example_input
    tied = {layer for group in env.problem.groups if is_tied(group) for layer in group.layers}
    if not any(isinstance(module, ZeroPadShortcut) for module in model.modules()):
        tied = set()
    low, high, best = 0.0, 1.0, None
    for _ in range(12):
        ratio = (low + high) / 2
        network = copy.deepcopy(model)
        heads = [module for module in network.modules() if isinstance(module, nn.Linear)]
        pruner = tp.pruner.BasePruner(
            network,
            example,
            importance(),
            global_pruning=everywhere,
            pruning_ratio=ratio,
            ignored_layers=[*heads, *(network.get_submodule(layer) for layer in tied)],
        )
        pruner.step()
        small = macs_ratio(env, network) <= target
        low, high = (low, ratio) if small else (ratio, high)
        best = network if small else best
    if best is None:
        raise ValueError(f"Torch-Pruning makes no network of {target:g} of the MACs here; raise target-macs")
    return Rival(best, 0)


def _own_norm() -> Any:
    """Rank filters by the L1 norm of their own weights."""
    import torch_pruning as tp

    return tp.importance.MagnitudeImportance(p=1, group_reduction="first", normalizer=None)


def _relative_norm() -> Any:
    """Rank filters by the L1 norm of their own weights, divided by the mean of their layer."""
    import torch_pruning as tp

    return tp.importance.MagnitudeImportance(p=1, group_reduction="first", normalizer="mean")


def _group_norm() -> Any:
    """Rank filters by the L2 norm of all weights that go with them, divided by the mean of their layer."""
    import torch_pruning as tp

    return tp.importance.GroupMagnitudeImportance(p=2)


def fastnas(env: FilterPruneEnv, target: float) -> Rival:
    """Search with FastNAS for the network of the highest accuracy on the reward images of a search."""
    import modelopt.torch.prune as mtp
    from modelopt.torch.utils.random import _set_deterministic_seed

    _set_deterministic_seed()  # else every process finds another network
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
    with contextlib.redirect_stdout(io.StringIO()), seeded("cpu", 0):
        network, _ = mtp.prune(
            model=copy.deepcopy(env.problem.model),
            mode=[("fastnas", space)],
            constraints={"flops": f"{100 * target}%"},
            dummy_input=data.example_input,
            config=settings | {"checkpoint": None, "verbose": False},
        )
    return Rival(network, looks)


RIVALS: dict[str, Callable[[FilterPruneEnv, float], Rival]] = {
    "torch_pruning_uniform": partial(torch_pruning, importance=_own_norm, everywhere=False),
    "torch_pruning_global": partial(torch_pruning, importance=_relative_norm, everywhere=True),
    "torch_pruning_group_norm": partial(torch_pruning, importance=_group_norm, everywhere=True),
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
