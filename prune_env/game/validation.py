"""What network, data and settings must be for a game to be played with them."""

from __future__ import annotations

import torch
from torch import nn

from ..common.device import with_gradients
from ..common.expect import expect
from ..common.fingerprints import qualified_name
from ..data import DataSplits, check_data
from ..data.objective import Metric
from ..evaluation.measurer import Task, batch_size
from .config import EnvConfig
from .reward import RewardFunction


def check_types(model: nn.Module, data: DataSplits, config: EnvConfig | None) -> None:
    """Raises TypeError where one is something else: a name, most likely, or settings as a dict."""
    expect(model, nn.Module, "the model must be a network (nn.Module)", 'make_env("small_cnn", "digits") takes names')
    check_data(data)
    expect(config, (EnvConfig, type(None)), "config must be an EnvConfig", "write EnvConfig(target_macs=0.5)")


@with_gradients  # an inference mode's tensors could not be differentiated through
def calibration_batches(data: DataSplits, config: EnvConfig) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Normalised calibration images and their labels, for first-order importance."""
    if config.importance != "taylor":
        return []
    if not data.classes:
        raise ValueError(
            f"importance 'taylor' differentiates the cross-entropy, which needs classes; data {data.name!r} has "
            "floating-point targets: choose another importance"
        )
    split = data.calibration.balanced(config.calibration_images)
    batches = zip(split.images.split(125), split.labels.split(125), strict=True)
    return [(data.normalise(images), labels) for images, labels in batches]


def check_budget(config: EnvConfig, reward: RewardFunction | None, metric: Metric | None) -> None:
    """Reward and racing need what the settings, each legal alone, may not give them."""
    if reward is None and config.reward == "budget" and config.target_macs is None:
        raise ValueError("reward 'budget' pays for accuracy alone and needs target_macs; set it, or take 'tradeoff'")
    if config.racing is not None and (metric is not None or reward is not None):
        raise ValueError(
            "racing counts images, and ends where a plan falls behind the most accurate ones; it does not go with a "
            "metric or a reward function of your own: set racing=None"
        )


def check_racing(config: EnvConfig, task: Task, recorded: bool) -> None:
    """A count can only end early between two batches, and never where a GPU replays it as a whole."""
    batch, count = batch_size(task.device), len(task.split)
    if config.racing is None:
        return
    if recorded:
        raise ValueError(
            f"racing={config.racing} would change nothing: on {task.device.type} all images are counted in one "
            "recording, in less time than it takes to decide; set racing=None"
        )
    if count <= batch:
        raise ValueError(
            f"racing={config.racing} would change nothing: the {count} reward images are counted in one batch of up to "
            f"{batch} on {task.device.type}; set racing=None, or raise reward_images"
        )


def check_original(accuracy: float, metric: Metric | None, config: EnvConfig) -> None:
    """Rewards are ratios to the unpruned network's accuracy, and AMC's pays for an error of at most 1."""
    if accuracy <= 0:
        raise ValueError(
            "the unpruned network gets none of the reward images right, so nothing can be lost; train it, "
            "and check that data and normalisation are those it was trained with"
            if metric is None
            else f"metric {qualified_name(metric)} is {accuracy} for the unpruned network; it must be above 0 there, "
            "since rewards are ratios to it, and more must be better: train the network, or shift or invert the metric"
        )
    if metric is not None and config.reward == "amc" and accuracy > 1:
        raise ValueError(
            f"metric {qualified_name(metric)} is {accuracy} for the unpruned network; reward 'amc' pays for the error "
            "1 - metric, which needs a metric of at most 1: take 'budget' or 'tradeoff'"
        )


def check_head(model: nn.Module, data: DataSplits) -> None:
    """The network must take the images, and name every class if there are any."""
    try:
        with torch.inference_mode():
            logits = model(data.example_input)
    except RuntimeError as error:
        raise ValueError(f"the network takes no images of shape {data.image_shape} (C, H, W): {error}") from error
    if not isinstance(logits, torch.Tensor):
        raise ValueError(f"the network must return one tensor of logits [B, K], it returned a {type(logits).__name__}")
    if not data.classes:
        return
    if logits.ndim != 2 or logits.shape[1] < len(data.classes):
        raise ValueError(
            f"the network's output is {tuple(logits.shape)}; data {data.name!r} has {len(data.classes)} classes, "
            "so it must return [B, K] logits with K at least that"
        )
