"""Weights that are not finite are never returned, and frozen networks are treated alike everywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from episodes import FAST, play
from torch import nn

from prune_env import EnvConfig, FilterPruneEnv, PruningProblem
from prune_env.data import DataSplits
from prune_env.networks import create
from prune_env.training.distillation import DistillationConfig, distil
from prune_env.training.finetune import Finetuner
from prune_env.training.fit import FitConfig, RunOptions, fit

ONE_STEP = FitConfig(epochs=0.01)
Train = Callable[[nn.Module, DataSplits, RunOptions], nn.Module]


def exploding(logits: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
    """A finite loss with a gradient that is not finite."""
    return (logits - logits.detach()).abs().sqrt().mean()


def with_distil(network: nn.Module, data: DataSplits, run: RunOptions) -> nn.Module:
    return distil(network, network, data, DistillationConfig(epochs=0.01, min_steps=0), loss=exploding, run=run)


WAYS: dict[str, Train] = {
    "fit": lambda network, data, run: fit(network, data, ONE_STEP, loss=exploding, run=run),
    "last weights": lambda n, data, run: fit(n, data, replace(ONE_STEP, ema_decay=0.0), loss=exploding, run=run),
    "best": lambda n, data, run: fit(n, data, replace(ONE_STEP, select_best=True), loss=exploding, run=run),
    "muon": lambda n, data, run: fit(n, data, replace(ONE_STEP, muon_lr=0.1), loss=exploding, run=run),
    "distil": with_distil,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_last_step_that_diverges(digits: DataSplits, tmp_path: Path, way: str) -> None:
    run = RunOptions(progress=False, checkpoint=tmp_path / "run.pt")
    with pytest.raises(FloatingPointError, match="step 0"):
        WAYS[way](create("small_cnn", 10, 1), digits, run)
    assert not list(tmp_path.iterdir()), "nothing is saved"


class Scaled(nn.Module):
    """Multiplies features so that BatchNorm statistics overflow where outputs do not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.conv(x) * 1e25).nan_to_num(0, 0, 0).clamp(-1, 1).mean((2, 3)))


def test_statistics_that_overflow(digits: DataSplits) -> None:
    with pytest.raises(FloatingPointError, match=r"norm\.running_var.*step 0"):
        fit(Scaled(), digits, replace(ONE_STEP, precision="fp32"), run=RunOptions(progress=False))


def test_infinities_of_the_original_are_allowed(digits: DataSplits) -> None:
    network = create("small_cnn", 10, 1)
    network.register_buffer("mask", torch.tensor(-torch.inf))
    assert fit(network, digits, ONE_STEP, run=RunOptions(progress=False)).mask == -torch.inf


@pytest.mark.parametrize("frozen", ["all", "first layer", "norms"])
def test_frozen_parameters_stay_frozen_in_every_result(trained: nn.Module, digits: DataSplits, frozen: str) -> None:
    """A network that is frozen completely, as for inference, is trained completely, and frozen again."""
    network = create("small_cnn", 10, 1)
    network.load_state_dict(trained.state_dict())
    chosen = {
        "all": network.modules(),
        "first layer": [network.get_submodule("features.0")],
        "norms": [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)],
    }
    for module in chosen[frozen]:
        module.requires_grad_(False)
    flags = [parameter.requires_grad for parameter in network.parameters()]
    problem = PruningProblem.create(network, digits, EnvConfig(**FAST))
    env = FilterPruneEnv.from_model(network, digits, EnvConfig(**FAST, round_finetune_batches=1))
    play(env)
    run = RunOptions(progress=False)
    results = [
        fit(network, digits, ONE_STEP, run=run),
        distil(network, network, digits, DistillationConfig(epochs=0.1, min_steps=0), run=run),
        Finetuner(problem, 1)(network),
        env.pruned_model(),
    ]
    for number, result in enumerate(results):
        assert [parameter.requires_grad for parameter in result.parameters()] == flags, number
    for number, result in enumerate(results[:3]):
        pairs = zip(result.parameters(), network.parameters(), flags, strict=True)
        changed = [not torch.equal(one.cpu(), other) for one, other, _ in pairs]
        assert any(changed), number
        if any(flags):
            assert not any(new and not flag for new, flag in zip(changed, flags, strict=True)), number


def test_a_network_without_parameters(digits: DataSplits) -> None:
    for train in (fit, lambda network, *args, **run: distil(network, network, digits, None, **run)):
        with pytest.raises(ValueError, match="Flatten"):
            train(nn.Flatten(), digits, run=RunOptions(progress=False))
