"""Copies for training, their precision, and the fingerprint of how a network learns."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import nn

from prune_env.data import DataSplits
from prune_env.networks import create
from prune_env.training.fit import FitConfig, RunOptions, fit
from prune_env.training.trainable import learning_fingerprint, trainable_copy, training_dtype

SHORT = FitConfig(epochs=1, batch_size=128, lr=0.05, ema_decay=0.9, seed=3)


class Strided(nn.Module):
    """Maps of one pixel before a convolution with a stride, as ResNet-18 has them on 16x16 images."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 32, 8)
        self.second = nn.Conv2d(32, 64, 3, stride=stride, padding=1)
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(x).relu()).relu().mean((2, 3)))


def test_only_a_network_that_is_frozen_completely_is_unfrozen() -> None:
    part, whole = create("small_cnn", 10, 1), create("small_cnn", 10, 1).requires_grad_(False)
    part.features[0].requires_grad_(False)
    copies = [trainable_copy(network, torch.device("cpu")) for network in (part, whole)]
    assert not copies[0].features[0].weight.requires_grad
    assert all(parameter.requires_grad for parameter in copies[1].parameters())
    assert not any(parameter.requires_grad for parameter in whole.parameters()), "the network is not changed"


def test_strides_over_single_pixels_are_trained_in_float32(digits: DataSplits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prune_env.training.trainable.fast_dtype", lambda _: torch.bfloat16)
    assert training_dtype(Strided(2), digits.example_input) == torch.float32
    assert training_dtype(Strided(1), digits.example_input) == torch.bfloat16
    assert training_dtype(create("small_cnn", 10, 1), digits.example_input) == torch.bfloat16


def test_a_stride_over_single_pixels_trains_the_same_every_time(digits: DataSplits) -> None:
    """In bfloat16 oneDNN's gradient of the weight contains uninitialised memory."""
    model, trained = Strided(2), []
    for _ in range(4):
        junk = [torch.full((size,), float("nan")) for size in (1 << 14, 1 << 16, 1 << 18, 1 << 20) for _ in range(4)]
        del junk
        trained.append(fit(model, digits, dataclasses.replace(SHORT, epochs=1), run=RunOptions(progress=False)))
    for other in trained[1:]:
        assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in trained[0].state_dict().items())


def test_the_fingerprint_depends_on_frozen_layers_and_dropout_but_not_on_threads(
    trained: nn.Module, digits: DataSplits, dropping: Callable[[float], nn.Module]
) -> None:
    part, whole = copy.deepcopy(trained), copy.deepcopy(trained)
    part.get_submodule("features.0").requires_grad_(False)
    whole.requires_grad_(False)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            models = (trained, whole, dropping(0.0), part, dropping(0.5))
            found.append([learning_fingerprint(model, digits.example_input) for model in models])
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1]
    assert len(set(found[0][:3])) == 1, "a network that is frozen completely is trained completely"
    assert len(set(found[0][2:])) == 3
