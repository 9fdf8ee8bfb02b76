"""Networks that need contiguous memory give the same results as networks that do not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from episodes import FAST, play
from torch import nn
from torch.nn import functional as F

from prune_env import EnvConfig, FilterPruneEnv
from prune_env.common.memory_format import memory_format
from prune_env.data import DataSplits
from prune_env.export import to_onnx
from prune_env.scoring.latency import TimingConfig, latency
from prune_env.scoring.metric import accuracy
from prune_env.training.distillation import DistillationConfig, distil
from prune_env.training.fit import FitConfig, RunOptions, fit

QUIET = RunOptions(progress=False)


class Flat(nn.Module):
    """Flattens maps of several pixels in one of several ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.first, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(self.second(self.norm(self.first(x)).relu()).relu(), 2)
        if self.way == "view":
            x = x.view(x.size(0), -1)
        elif self.way == "as_strided":
            x = x.as_strided((x.size(0), 128), (128, 1))
        elif self.way == "checked":
            if not x.is_contiguous():
                raise ValueError("give contiguous maps")
            x = x.flatten(1)
        else:
            x = x.flatten(1)
        return self.head(x)


def made(way: str) -> Flat:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Flat(way).eval()


@pytest.mark.parametrize("way", ["view", "as_strided", "checked"])
def test_results_are_those_of_flatten(digits: DataSplits, tmp_path: Path, way: str) -> None:
    network, images = made(way), digits.normalise(digits.test.images[:9])
    assert memory_format(network, images) == torch.contiguous_format
    assert memory_format(made("flatten"), images) == torch.channels_last
    expected, distillation = made("flatten"), DistillationConfig(epochs=0.1, min_steps=0)
    both = [fit(one, digits, FitConfig(epochs=0.1, precision="fp32"), run=QUIET) for one in (network, expected)]
    for (name, found), wanted in zip(both[0].state_dict().items(), both[1].state_dict().values(), strict=True):
        assert torch.allclose(found.float(), wanted.float(), atol=1e-3), name
    distilled = distil(network, network, digits, distillation, run=QUIET)
    for settings in ({}, {"finetune_batches": 1}, {"round_finetune_batches": 1}):
        env = FilterPruneEnv.from_model(network, digits, EnvConfig(**FAST, **settings))
        play(env)
        env.evaluator.recalibrate(distilled)
        assert torch.isfinite(distilled(images[:1])).all()
    envs = [FilterPruneEnv.from_model(one, digits, EnvConfig(**FAST, precision="fp32")) for one in (network, expected)]
    assert envs[0].evaluator.original_accuracy == pytest.approx(envs[1].evaluator.original_accuracy, abs=0.02)
    assert accuracy(network, digits, digits.test) == pytest.approx(accuracy(expected, digits, digits.test), abs=0.005)
    assert to_onnx(network, tmp_path / "network.onnx", images) < 1e-4
    assert latency(network, (1, 8, 8), 1, TimingConfig(seconds=0, min_runs=1)).median_ms > 0


def test_a_custom_metric_gets_a_network_that_runs(digits: DataSplits) -> None:
    config = EnvConfig(**FAST)

    def metric(network: nn.Module, split: object) -> float:
        return float(network(split.images).softmax(1).amax(1).mean())  # type: ignore[attr-defined]

    values = [
        FilterPruneEnv.from_model(made(way), digits, config, metric=metric).evaluator.original_accuracy
        for way in ("view", "flatten")
    ]
    assert values[0] == pytest.approx(values[1], abs=0.01)


def test_normalised_images_have_contiguous_strides(digits: DataSplits) -> None:
    """Also those of a single channel, whose strides decide the format of a convolution's output."""
    images = digits.augmented(digits.train.images[:2], torch.Generator().manual_seed(0))
    assert images.stride() == (64, 64, 8, 1)
