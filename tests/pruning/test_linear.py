"""Hidden linear layers lose neurons as convolutions lose filters, by default where they hold many parameters."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from prune_env import EnvConfig, FilterPruneEnv, load_pruned, save_pruned
from prune_env.data import DataSplits
from prune_env.export import to_onnx
from prune_env.networks import create, list_networks
from prune_env.networks.registry import image_size
from prune_env.pruning import Cost, build, find_groups, importance, inspect, prove
from prune_env.pruning.errors import PruningError
from prune_env.pruning.grouping import groups_and_protected

IMAGES = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
HIDDEN = ("one", "two")


class Classic(nn.Module):
    """A convolution, a flatten, and two hidden linear layers, one with BatchNorm, before the logits."""

    def __init__(self, width: int = 12, last: bool = True) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(1, 6, 3, padding=1), nn.MaxPool2d(2)
        self.one, self.norm, self.drop = nn.Linear(96, width), nn.BatchNorm1d(width), nn.Dropout(0.5)
        self.two, self.three = nn.Linear(width, 9), nn.Linear(9, 10)
        self.last = last
        with torch.no_grad():
            generator = torch.Generator().manual_seed(width)
            for parameter in self.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.pool(F.relu(self.conv(images))).flatten(1)
        logits = self.three(F.relu(self.two(self.drop(F.relu(self.norm(self.one(x)))))))
        return logits if self.last else F.log_softmax(logits, 1)


def layers(model: nn.Module, images: torch.Tensor = IMAGES, **settings: Any) -> list[tuple[str, ...]]:
    return [group.layers for group in groups_and_protected(model, images, **settings)[0]]


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("linear", [None, True])
def test_hidden_layers_are_groups_and_the_last_one_is_not(linear: bool | None, last: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # that the logits stay needs no warning
        groups = find_groups(Classic(last=last).eval(), IMAGES, linear=linear)
    assert [(group.name, *group.layers, group.filters) for group in groups] == [
        ("conv_0", "conv", 6),
        ("conv_1", "one", 12),
        ("conv_2", "two", 9),
    ]
    assert ("norm", "out") in {(member.module, member.side) for member in groups[1].members}


def test_without_linear_layers_only_the_convolutions_are_groups() -> None:
    assert layers(Classic().eval(), linear=False) == [("conv",)]
    with pytest.raises(PruningError):
        find_groups(nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 4)), IMAGES, linear=False)


def test_a_network_of_linear_layers_only_can_be_pruned() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    inspection = inspect(model, IMAGES)
    assert [group.layers for group in inspection.groups] == [("1",)]
    assert max((inspection.differences or {}).values()) < 1e-4


@pytest.mark.parametrize("hidden", [7, 11])
def test_by_default_they_are_groups_if_they_hold_over_a_tenth_of_the_parameters(hidden: int) -> None:
    layer = nn.Linear(4, hidden)
    tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), layer, nn.ReLU(), nn.Linear(hidden, 4)]
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 4, 3), nn.ReLU(), *tail).eval()
    share = sum(p.numel() for p in layer.parameters()) / sum(p.numel() for p in model.parameters())
    assert (("5",) in layers(model)) == (share > 0.1) == (hidden == 11)
    assert ("5",) in layers(model, linear=True)


def test_a_layer_whose_neurons_are_an_output_stays_and_is_named() -> None:
    class Features(Classic):
        def forward(self, images: torch.Tensor) -> Any:
            x = F.relu(self.one(self.pool(F.relu(self.conv(images))).flatten(1)))
            return self.three(F.relu(self.two(x))), x

    groups, (entry,) = groups_and_protected(Features().eval(), IMAGES, linear=True)
    assert [group.layers for group in groups] == [("conv",), ("two",)]
    assert entry.layers == ("one",)


@pytest.mark.parametrize("name", list_networks())
def test_which_registered_networks_have_hidden_linear_layers(name: str) -> None:
    model = create(name).eval()
    found = layers(model, torch.zeros(2, 3, *image_size(name)), linear=True)
    linear = [path for group in found for path in group if isinstance(model.get_submodule(path), nn.Linear)]
    assert linear == (["classifier.1", "classifier.4"] if name == "alexnet" else [])


@settings(max_examples=10, deadline=None, derandomize=True)
@given(width=st.integers(2, 20), seed=st.integers(0, 10_000))
def test_cut_equals_masked_and_costs_are_exact(width: int, seed: int) -> None:
    model = Classic(width).eval()
    groups = find_groups(model, IMAGES, linear=True)
    generator = torch.Generator().manual_seed(seed)
    ranking = {group.name: torch.randperm(group.filters, generator=generator) for group in groups}
    assert max(prove(model, groups, IMAGES, ranking, seed=seed).values()) < 1e-4
    plan = tuple(int(torch.randint(1, group.filters + 1, (), generator=generator)) for group in groups)
    smaller: Any = build(model, groups, ranking, plan)
    assert (smaller.one.out_features, smaller.two.out_features, smaller.three.out_features) == (*plan[1:], 10)
    cost = Cost(model, groups, IMAGES)
    assert cost.params(plan) == sum(parameter.numel() for parameter in smaller.parameters())
    convolution, one, two, three = plan[0] * 9 * 64, plan[0] * 16 * plan[1], plan[1] * plan[2], plan[2] * 10
    assert cost.macs(plan) == convolution + one + two + three


@pytest.mark.parametrize("name", sorted(set(importance.IMPORTANCES) - {"bn_scale"}))
def test_every_importance_ranks_neurons(name: str) -> None:
    model = Classic().eval()
    groups = find_groups(model, IMAGES, linear=True)
    found = importance.scores(name, model, groups, batches=[(IMAGES, torch.arange(8))])
    assert [len(score) for score in found.values()] == [6, 12, 9]
    assert all(score.std() > 0 for score in found.values())


def test_the_scale_of_a_batchnorm_behind_a_linear_layer_ranks_its_neurons() -> None:
    model = Classic().eval()
    _, one, two = find_groups(model, IMAGES, linear=True)
    score = importance.scores("bn_scale", model, [one])[one.name]
    assert score.argsort().tolist() == model.norm.weight.abs().argsort().tolist()
    with pytest.raises(ValueError, match=r"two.*linear=False"):
        importance.scores("bn_scale", model, [two])


def test_an_environment_plays_saves_and_exports_them(digits: DataSplits, tmp_path: Path) -> None:
    config = EnvConfig(target_macs=0.5, rounds=1, rates=(0.0, 0.3, 0.5), reward_images=100, calibration_images=50)
    env = FilterPruneEnv.from_model(Classic(), digits, config)
    observations, _ = env.reset(seed=0)
    assert list(observations) == ["conv_0", "conv_1", "conv_2"]
    assert all(env.observation_space(agent).contains(entries) for agent, entries in observations.items())
    kernel = env.observation_names.index("kernel")
    assert [entries[kernel] > 0 for entries in observations.values()] == [True, False, False]
    plan = env.least_change.plan(0.5)
    env.play(plan)
    network: Any = env.evaluator.network(plan)
    assert network.one.out_features == plan[1]
    assert env.archive.best(1)[0].accuracy == pytest.approx(env.evaluator.accuracy_of(network), abs=0.011)
    save_pruned(tmp_path, network, plan, env.problem, base=env.problem.model)
    loaded = load_pruned(tmp_path, base_model=Classic())
    with torch.inference_mode():
        torch.testing.assert_close(loaded(IMAGES), network(IMAGES))
    to_onnx(loaded, tmp_path / "small.onnx", IMAGES)
    whole = FilterPruneEnv.from_model(Classic(), digits, dataclasses.replace(config, linear=False, target_macs=0.8))
    assert whole.possible_agents == ["conv_0"]
    assert whole.fingerprint != env.fingerprint
