"""Settings of the environment: wrong values are named, and differences between two sets of settings are found."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from prune_env import EnvConfig
from prune_env.evaluation.config import EvaluationConfig
from prune_env.game.config import NOT_SET, differences
from prune_env.pruning.problem import ProblemConfig


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"rounds": 0}, "rounds .*0"),
        ({"rounds": 2.5}, "rounds .*2.5"),
        ({"rounds": True}, "rounds .*True"),
        ({"max_cycles": 0}, "max_cycles .*0"),
        ({"rates": (0.1, 0.2)}, r"rates .*\(0.1, 0.2\)"),
        ({"rates": (0.0, 0.5, 0.3)}, r"rates .*\(0.0, 0.5, 0.3\)"),
        ({"rates": (0.0, 1.0)}, r"rates .*\(0.0, 1.0\)"),
        ({"rates": (0.0,)}, r"rates .*\(0.0,\)"),
        ({"target_macs": 1.5}, "target_macs .*1.5"),
        ({"target_macs": 0}, "target_macs .*0"),
        ({"target_macs": math.nan}, "target_macs .*nan"),
        ({"target_macs": "0.5"}, "target_macs .*'0.5'"),
        ({"reward": "accuracy"}, "reward 'accuracy'.*budget.*register_reward"),
        ({"reward": "tradeoff"}, "tradeoff.*target_macs.*0.5"),
        ({"min_filters": 0}, "min_filters .*0"),
        ({"round_to": 0}, "round_to .*0"),
        ({"reward_images": 0}, "reward_images .*0"),
        ({"calibration_images": 0}, "calibration_images .*0"),
        ({"importance": "magic"}, "importance 'magic'.*l1.*register_importance"),
        ({"finetune_batches": -1}, "finetune_batches .*-1"),
        ({"finetune_batches": 2.5}, "finetune_batches .*2.5"),
        ({"round_finetune_batches": -1}, "round_finetune_batches .*-1"),
        ({"finetune_batches": 2, "round_finetune_batches": 3}, "finetune_batches .*round_finetune_batches .*2 .*3"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        EnvConfig(**settings)


@pytest.mark.parametrize("kind", [ProblemConfig, EvaluationConfig])
def test_the_parts_of_the_settings_check_themselves(kind: type[ProblemConfig]) -> None:
    with pytest.raises(ValueError, match=r"calibration_images .*-1"):
        kind(calibration_images=-1)


def test_settings_are_immutable_and_comparable() -> None:
    config = EnvConfig(rates=[0.0, 0.5])  # type: ignore[arg-type]
    assert config == EnvConfig(rates=(0.0, 0.5))
    assert config.rates == (0.0, 0.5)
    assert hash(config) == hash(EnvConfig(rates=(0.0, 0.5)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.rounds = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("settings", "trains"), [({}, False), ({"finetune_batches": 1}, True), ({"round_finetune_batches": 1}, True)]
)
def test_trains_says_whether_an_episode_trains_networks(settings: dict[str, Any], trains: bool) -> None:
    assert EnvConfig(**settings).trains == trains


def test_differences_name_both_values() -> None:
    before, now = {"seed": 0, "rounds": 3, "old": 1}, {"seed": 1, "rounds": 3, "new": None}
    found = {name: values for name, *values in differences(before, now)}
    assert found == {"seed": [0, 1], "old": [1, NOT_SET], "new": [NOT_SET, None]}
    assert differences(now, now) == []
    assert str(NOT_SET) == "not set"
