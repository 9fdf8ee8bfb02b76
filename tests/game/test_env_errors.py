"""What `FilterPruneEnv` and `make_env` refuse, by name, and what they warn of."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import prune_env
from prune_env import EnvConfig, FilterPruneEnv
from prune_env.data import DataSplits
from prune_env.networks import create
from prune_env.pruning import build
from prune_env.training.distillation import distill
from prune_env.training.fit import FitConfig, fit
from qmix_agent import QMIX, QMIXConfig

EnvMaker = Callable[..., FilterPruneEnv]


def test_render_mode(make_env: EnvMaker) -> None:
    with pytest.raises(ValueError, match="render_mode 'human'"):
        make_env(render_mode="human")


def test_actions(make_env: EnvMaker) -> None:
    env = make_env()
    env.reset()
    with pytest.raises(ValueError, match="no action for agent 'conv_1'"):
        env.step({"conv_0": 0})
    with pytest.raises(ValueError, match="action 10 of agent 'conv_0'"):
        env.step(dict.fromkeys(env.agents, 10))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rounds": 0}, "^rounds must be a whole number of at least 1, got 0"),
        ({"rates": (0.1, 0.2)}, "^rates must rise from 0.0"),
        ({"rates": (0.0, 0.5, 0.3)}, "^rates must rise from 0.0"),
        ({"rates": (0.0, 1.0)}, "^rates must .* stay below 1"),
        ({"target_macs": 1.5}, r"^target_macs must be in \(0, 1\], or None .*; got 1.5"),
        ({"target_macs": None}, "needs target_macs"),
        ({"target_macs": 0.0001}, "out of reach"),
        ({"reward": "accuracy"}, "reward 'accuracy'"),
        ({"importance": "magic"}, "importance 'magic'"),
        ({"max_cycles": 0}, "^max_cycles must be at least 1, or None"),
        ({"rounds": 2.5}, "rounds must be a whole number"),
        (
            {"reward": "tradeoff"},
            r"plays without a budget .*; set target_macs to None \(--target-macs None\) instead of 0.5",
        ),
        ({"round_finetune_batches": -1}, "round_finetune_batches must be a whole number of at least 0"),
        ({"finetune_batches": -1}, "^finetune_batches must be a whole number of at least 0"),
        ({"finetune_batches": 2.5}, "^finetune_batches must be a whole number"),
        ({"finetune_batches": 2, "round_finetune_batches": 3}, "set one of 2 and 3 to 0"),
        ({"measure_at": 0.0}, "^measure_at must be above 0 and at most 1, got 0.0"),
        ({"measure_at": 1.5}, "^measure_at must be above 0 and at most 1, got 1.5"),
        (
            {"measure_at": 0.5, "round_finetune_batches": 3},
            "set measure_at=1 or round_finetune_batches=0, got 0.5 and 3",
        ),
    ],
)
def test_settings(make_env: EnvMaker, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_env(**settings)


def test_an_unknown_setting() -> None:
    with pytest.raises(TypeError, match=r"no setting 'target_mac'; did you mean 'target_macs'\?"):
        prune_env.make_env("small_cnn", target_mac=0.5)
    with pytest.raises(TypeError, match=r"no setting 'xyz'; choose among rounds, .*problem_seed"):
        prune_env.make_env("small_cnn", xyz=0.5)


def test_labels_outside_the_head(digits: DataSplits) -> None:
    with pytest.raises(ValueError, match="has 10 classes"):
        FilterPruneEnv.from_model(create("small_cnn", 7, 1), digits)


def test_an_untrained_network(digits: DataSplits) -> None:
    never = create("small_cnn", 11, 1)
    torch.nn.init.zeros_(never.classifier.weight)
    never.classifier.bias.data = torch.tensor([0.0] * 10 + [1.0])  # always the eleventh class
    with pytest.raises(ValueError, match="none of the reward images right"):
        FilterPruneEnv.from_model(never, digits, EnvConfig(prove=False))


def test_a_network_with_two_outputs(digits: DataSplits) -> None:
    class Two(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x, x

    with pytest.raises(ValueError, match="one tensor of logits"):
        FilterPruneEnv.from_model(Two(), digits)


def test_images_of_another_shape(digits: DataSplits) -> None:
    with pytest.raises(ValueError, match="takes no images of shape"):
        FilterPruneEnv.from_model(create("small_cnn", 10, 3), digits)


def test_a_recalibration_that_hurts_is_told(trained: torch.nn.Module, digits: DataSplits) -> None:
    """The stored statistics are right, the calibration images are not: black."""
    black = copy.copy(digits.calibration)
    object.__setattr__(black, "images", torch.zeros_like(black.images))
    wrong = copy.copy(digits)
    object.__setattr__(wrong, "calibration", black)
    with pytest.warns(UserWarning, match=r"costs the unpruned network \d+\.\d+ points"):
        FilterPruneEnv.from_model(trained, wrong, EnvConfig(prove=False, reward_images=100))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FilterPruneEnv.from_model(trained, digits, EnvConfig(prove=False))


class TestWrongTypes:
    def test_of_an_environment(self, trained: torch.nn.Module, digits: DataSplits) -> None:
        for model in ("small_cnn", torch.nn.ReLU, None):
            with pytest.raises(TypeError, match=r"the model must be a network \(nn.Module\), got .*make_env"):
                FilterPruneEnv.from_model(model, digits)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"data must be DataSplits, got str; .*load"):
            FilterPruneEnv.from_model(trained, "digits")  # type: ignore[arg-type]
        for config in ({"target_macs": 0.5}, 0.5):
            with pytest.raises(TypeError, match=r"must be an EnvConfig, got \w+; write EnvConfig\(target_macs=0.5\)"):
                FilterPruneEnv.from_model(trained, digits, config)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"network must be a registered name, got SmallCNN; .* FilterPruneEnv"):
            prune_env.make_env(trained)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"data must be DataSplits, got Tensor; .*from_tensors"):
            prune_env.make_env("small_cnn", digits.train.images)  # type: ignore[arg-type]

    def test_of_a_training(self, trained: torch.nn.Module, digits: DataSplits) -> None:
        for train in (fit, lambda model, data, config=None: distill(model, trained, data, config)):
            with pytest.raises(TypeError, match=r"what is trained must be a network \(nn.Module\), got str"):
                train("small_cnn", digits)
            with pytest.raises(TypeError, match=r"data must be DataSplits, got Tensor; .*load"):
                train(trained, digits.train.images)
            with pytest.raises(TypeError, match=r"config must be a \w+Config, got dict; write \w+Config\(epochs=1\)"):
                train(trained, digits, {"epochs": 1})
        with pytest.raises(TypeError, match="config must be a DistillationConfig, got FitConfig"):
            distill(trained, trained, digits, FitConfig(epochs=1))  # type: ignore[arg-type]

    def test_of_a_plan(self, make_env: EnvMaker, tmp_path: Path) -> None:
        env, plan = make_env(), {"features.0": 26}
        parts = {"groups": env.groups, "ranking": env.problem.ranking, "data": env.problem.data}
        for use in (
            lambda: prune_env.save_pruned(tmp_path, env.problem.model, plan, **parts),  # type: ignore[arg-type]
            lambda: build(env.problem.model, env.groups, env.problem.ranking, plan),  # type: ignore[arg-type]
        ):
            with pytest.raises(TypeError, match="each of the 5 groups, in their order, got dict; give a tuple"):
                use()
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("config", [{"mixer": "vdn"}, QMIXConfig])
    def test_of_an_agents_settings(self, make_env: EnvMaker, config: object) -> None:
        with pytest.raises(TypeError, match=r"config must be a QMIXConfig, got .*; write QMIXConfig"):
            QMIX(make_env(), config)  # type: ignore[arg-type]
