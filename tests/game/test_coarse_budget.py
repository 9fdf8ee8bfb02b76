"""A budget that a network cannot meet within the tolerance is named; ordinary networks get no warning."""

from __future__ import annotations

import inspect
import warnings

import numpy as np
import pytest
import torch
from episodes import FAST, EnvMaker, play
from layered import VGG16, Network, chain, residual
from torch import nn

from prune_env import EnvConfig, FilterPruneEnv
from prune_env.data import DataSplits


def coarse(digits: DataSplits, filters: int, target: float, **settings: int) -> FilterPruneEnv:
    """Return the environment of an untrained network with a single group."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, filters, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(filters, 10)
    )
    return FilterPruneEnv.from_model(model, digits, EnvConfig(target_macs=target, **FAST, **settings))


@pytest.mark.parametrize(
    ("filters", "target", "settings", "reached"),
    [
        (8, 0.44, {"round_to": 1}, ("0.3750", "0.5000")),
        (7, 0.5, {}, ("0.4286", "0.5714")),
        (8, 0.99, {"round_to": 1}, ("0.8750", "1.0000")),
        (64, 0.6, {"round_to": 16}, ("0.5000", "0.7500")),
    ],
)
def test_a_target_between_two_coarse_plans_is_named(
    digits: DataSplits, filters: int, target: float, settings: dict[str, int], reached: tuple[str, str]
) -> None:
    with pytest.warns(UserWarning, match=f"target_macs={target}.*{reached[0]}.*{reached[1]}") as created:
        env = coarse(digits, filters, target, **settings)
    with pytest.warns(UserWarning, match=f"target_macs={target}") as played:
        record = play(env)
    assert {one.filename for one in created} == {__file__}
    assert {one.filename for one in played} == {inspect.getfile(play)}
    assert f"{record[-1][-1]['conv_0']['macs_ratio']:.4f}" == reached[0]


@pytest.mark.parametrize(("filters", "target"), [(8, 0.5), (8, 1.0), (8, 0.255), (200, 0.5)])
def test_a_target_that_can_be_met_is_not_warned_about(digits: DataSplits, filters: int, target: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        play(coarse(digits, filters, target, round_to=1))


def test_ordinary_networks_are_not_warned_about(make_env: EnvMaker) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for round_to in (1, 4, 8):
            play(make_env(target_macs=0.5, round_to=round_to))


@pytest.mark.parametrize("network", [VGG16, chain((16, 32, 64), (8, 8, 4)), residual((16, 32, 48), (8, 8, 4))])
@pytest.mark.parametrize("target", [0.3, 0.5, 0.9])
def test_the_ratios_around_the_target_belong_to_plans_next_to_it(network: Network, target: float) -> None:
    budget = network.budget(target)
    below, above = budget.ratios_around_target()
    assert target - budget.tolerance <= below <= target < above
    assert budget.meets(budget.uniform())
    assert not budget.meets(np.full(len(network.full), 1))
