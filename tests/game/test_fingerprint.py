"""Two games have one fingerprint only if equal plans have equal accuracies."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from episodes import FAST, EnvMaker
from torch import nn

from prune_env import EnvConfig, FilterPruneEnv
from prune_env.data import DataSplits, Split, TensorSplit


def constant(network: nn.Module, split: Split, value: float = 0.5) -> float:
    return value


def another(network: nn.Module, split: Split) -> float:
    return 0.5


def mean_logit(logits: torch.Tensor, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return logits.mean()


def fingerprint(model: nn.Module, data: DataSplits, **settings: Any) -> str:
    return FilterPruneEnv.from_model(model, data, EnvConfig(**(FAST | settings))).fingerprint


def test_it_is_the_same_for_equal_games(trained: nn.Module, digits: DataSplits) -> None:
    assert fingerprint(trained, digits) == fingerprint(copy.deepcopy(trained).train(), digits)


@pytest.mark.parametrize(
    "settings",
    [
        {"importance": "l2"},
        {"problem_seed": 1},
        {"reward_images": 101},
        {"calibration_images": 101},
        {"target_macs": 0.4},
        {"rounds": 2},
        {"finetune_batches": 1},
        {"round_finetune_batches": 1},
    ],
)
def test_settings_change_it(trained: nn.Module, digits: DataSplits, settings: dict[str, Any]) -> None:
    assert fingerprint(trained, digits, **settings) != fingerprint(trained, digits)


def test_weights_and_images_change_it(trained: nn.Module, digits: DataSplits) -> None:
    other = copy.deepcopy(trained)
    with torch.no_grad():
        other.classifier.bias[0] += 1e-3
    images = digits.reward.images.clone()
    images[0] = 0
    data = replace(digits, reward=TensorSplit(images, digits.reward.labels))
    assert len({fingerprint(trained, digits), fingerprint(other, digits), fingerprint(trained, data)}) == 3


def test_metric_and_loss_change_it(make_env: EnvMaker) -> None:
    functions: list[dict[str, Any]] = [
        {},
        {"metric": constant},
        {"metric": another},
        {"metric": functools.partial(constant, value=0.6)},
        {"loss": mean_logit},
    ]
    assert len({make_env(**function).fingerprint for function in functions}) == len(functions)


@pytest.mark.parametrize("how", ["frozen", "dropping"])
@pytest.mark.parametrize("batches", [None, "finetune_batches", "round_finetune_batches"])
def test_how_a_network_learns_matters_where_it_is_trained(
    trained: nn.Module,
    digits: DataSplits,
    dropping: Callable[[float], nn.Module],
    how: str,
    batches: str | None,
) -> None:
    """Two networks with equal weights and outputs, one of which learns differently."""
    other = dropping(0.5)
    if how == "frozen":
        other = copy.deepcopy(trained)
        other.features[0].requires_grad_(False)
    settings = {} if batches is None else {batches: 1}
    equal = fingerprint(trained, digits, **settings) == fingerprint(other, digits, **settings)
    assert equal == (batches is None)
