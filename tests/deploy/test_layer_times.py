"""Measured latency tables: they cover every layer, and nothing else changes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn

from prune_env.data import DataSplits
from prune_env.deploy.layer_times import LayerTiming, measure_layer_times
from prune_env.pruning import Cost, inspect
from prune_env.pruning.problem import ProblemConfig, PruningProblem
from prune_env.scoring.latency import Latency, TimingConfig

FAST = TimingConfig(warmup=1, seconds=0, min_runs=4, threads=1)


class Shapes(nn.Module):
    """One layer of each kind, one of them called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding="same")
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, stride=2, groups=16)
        self.grouped = nn.Conv2d(16, 32, 1, groups=4)
        self.up = nn.ConvTranspose2d(32, 16, 3, stride=2, output_padding=1, padding=1)
        self.twice = nn.Conv2d(16, 16, 3, padding=2, dilation=2)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.up(self.grouped(self.depthwise(self.stem(x)).relu()).relu()).relu()
        return self.head(self.twice(self.twice(x).relu()).relu().mean((2, 3)))


@pytest.mark.parametrize("runtime", ["torch", pytest.param("onnxruntime", marks=pytest.mark.slow)])
@pytest.mark.usefixtures("untouched_rngs", "untouched_gpus")
def test_a_table_predicts_every_plan_of_the_network(
    runtime: Literal["torch", "onnxruntime"], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng(devices=[]):
        model = Shapes().eval()
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    before, threads = copy.deepcopy(model.state_dict()), torch.get_num_threads()
    inspection = inspect(model, images, prove=False)
    table = measure_layer_times(model, inspection.groups, images, LayerTiming(runtime=runtime, timing=FAST))
    assert torch.get_num_threads() == threads
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not list(tmp_path.iterdir()), "profiles are left behind"
    cost = Cost(model, inspection.groups, images)
    assert set(table.layers) == set(cost.layers)
    assert runtime in table.measured_on
    full = tuple(group.filters for group in inspection.groups)
    predictor = table.predictor(cost, full)
    assert 0 < predictor.milliseconds(tuple(max(1, filters // 4) for filters in full)) <= predictor.milliseconds(full)


def test_wide_layers_take_longer_than_narrow_ones() -> None:
    """The widths differ by 64 times in MACs, so noise cannot change the order."""
    model = nn.Sequential(nn.Conv2d(3, 256, 3, padding=1), nn.ReLU(), nn.Conv2d(256, 256, 3, padding=1), nn.Flatten())
    model.append(nn.Linear(256 * 64, 2)).eval()
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    groups = inspect(model, images, prove=False).groups
    table = measure_layer_times(model, groups, images, LayerTiming(runtime="torch", timing=FAST))
    times = table.layers["2"].milliseconds
    assert times[-1][-1] > 2 * times[0][0]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prune_env.common.command.find_spec", lambda name: None)
    arguments: Any = (Shapes(), (), torch.zeros(2, 3, 8, 8))
    with pytest.raises(ImportError, match=r"onnxruntime.*export"):
        measure_layer_times(*arguments)


def test_a_latency_that_does_not_depend_on_widths_is_refused(
    trained: nn.Module, digits: DataSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table of it would promise what no plan keeps."""
    same = Latency(5.0, 5.0, 1, 4, 1, "float32")
    monkeypatch.setattr("prune_env.deploy.layer_times.latencies", lambda models, *_: dict.fromkeys(models, same))
    problem = PruningProblem.create(trained, digits, ProblemConfig(prove=False))
    with pytest.raises(ValueError, match="latency does not fall"):
        measure_layer_times(
            problem.model, problem.groups, digits.example_input, LayerTiming(runtime="torch", timing=FAST)
        )


def test_layers_are_timed_on_the_processor_only() -> None:
    with pytest.raises(ValueError, match="device"):
        LayerTiming(timing=TimingConfig(device="meta"))
