"""Problem, settings, evaluator and actions must fit together, and errors come before anything expensive happens."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import replace
from typing import Any

import pytest
import torch
from episodes import FAST, EnvMaker
from torch import nn

from prune_env import EnvConfig, FilterPruneEnv, PruningProblem
from prune_env.data import DataSplits, Split, TensorSplit
from prune_env.evaluation.config import EvaluationConfig
from prune_env.evaluation.live import LiveEvaluator
from prune_env.evaluation.resources import Resources
from prune_env.networks import create

CONFIG = EnvConfig(**FAST)


@pytest.fixture(scope="module")
def problem(trained: nn.Module, digits: DataSplits) -> PruningProblem:
    return PruningProblem.create(trained, digits, CONFIG)


@pytest.fixture
def nothing_expensive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test if a network runs, as it does for an inspection or an evaluation."""

    def fails(*_: Any, **__: Any) -> Any:
        raise AssertionError("something expensive happened before the error")

    monkeypatch.setattr("prune_env.evaluation.live.Measurer", fails)
    monkeypatch.setattr(nn.Module, "__call__", fails)


class WithoutClose:
    """An evaluator that lacks two members."""

    def __init__(self, evaluator: LiveEvaluator) -> None:
        for name in ("problem", "config", "device", "original_accuracy", "accuracy", "accuracy_of", "network"):
            setattr(self, name, getattr(evaluator, name))
        self.submit, self.remember = evaluator.submit, evaluator.remember


def test_members_that_an_evaluator_lacks_are_named(problem: PruningProblem) -> None:
    evaluator: Any = WithoutClose(LiveEvaluator(problem, CONFIG))
    with pytest.raises(TypeError, match=r"WithoutClose.*recalibrate, close"):
        FilterPruneEnv(problem, CONFIG, evaluator=evaluator)
    for wrong in (LiveEvaluator, "processes", problem):
        with pytest.raises(TypeError, match="evaluator"):
            FilterPruneEnv(problem, CONFIG, evaluator=wrong)  # type: ignore[arg-type]


class TestBeforeAnythingExpensive:
    @pytest.mark.parametrize(
        ("settings", "named"),
        [
            ({"target_macs": None}, "target_macs"),
            ({"render_mode": "human"}, "render_mode 'human'.*ansi"),
        ],
    )
    @pytest.mark.usefixtures("nothing_expensive")
    def test_rules_and_render_mode(self, make_env: EnvMaker, settings: dict[str, Any], named: str) -> None:
        with pytest.raises(ValueError, match=named):
            make_env(**settings)

    @pytest.mark.parametrize("batches", ["finetune_batches", "round_finetune_batches"])
    @pytest.mark.usefixtures("nothing_expensive")
    def test_a_missing_loss(self, trained: nn.Module, digits: DataSplits, batches: str) -> None:
        targets = TensorSplit(digits.train.images, digits.train.labels.float())
        data = replace(digits, classes=(), train=targets)
        with pytest.raises(ValueError, match=r"loss\(logits, images, labels\)"):
            FilterPruneEnv.from_model(
                trained, data, EnvConfig(**FAST, **{batches: 1}), metric=lambda network, split: 1.0
            )

    @pytest.mark.usefixtures("nothing_expensive")
    def test_another_config_than_the_problems(self, problem: PruningProblem) -> None:
        with pytest.raises(ValueError, match=r"importance .*'l2'.*'l1'"):
            FilterPruneEnv(problem, replace(CONFIG, importance="l2"))

    @pytest.mark.usefixtures("nothing_expensive")
    def test_a_target_out_of_reach(self, problem: PruningProblem) -> None:
        with pytest.raises(ValueError, match=r"target_macs=0\.0001"):
            FilterPruneEnv(problem, replace(CONFIG, target_macs=0.0001))

    @pytest.mark.usefixtures("nothing_expensive")
    def test_a_cache_with_a_custom_metric(self, problem: PruningProblem) -> None:
        custom = replace(problem, metric=lambda network, split: 1.0)
        with pytest.raises(ValueError, match=r"cache 'plans.sqlite' .*metric"):
            FilterPruneEnv(custom, CONFIG, resources=Resources(cache="plans.sqlite"))


class TestTypes:
    @pytest.mark.parametrize("config", [{"target_macs": 0.5}, 0.5, EnvConfig])
    def test_config_must_be_an_env_config(
        self, config: Any, problem: PruningProblem, trained: nn.Module, digits: DataSplits
    ) -> None:
        with pytest.raises(TypeError, match=r"EnvConfig.*EnvConfig\(target_macs=0\.5\)"):
            FilterPruneEnv.from_model(trained, digits, config)
        with pytest.raises(TypeError, match=r"EnvConfig.*EnvConfig\(target_macs=0\.5\)"):
            FilterPruneEnv(problem, config)

    @pytest.mark.parametrize("model", ["small_cnn", nn.ReLU, None])
    def test_the_model_must_be_a_network(self, model: Any, digits: DataSplits) -> None:
        with pytest.raises(TypeError, match=r"model.*nn\.Module.*make_env"):
            FilterPruneEnv.from_model(model, digits)

    def test_data_must_be_splits(self, trained: nn.Module) -> None:
        with pytest.raises(TypeError, match=r"DataSplits.*str.*load"):
            FilterPruneEnv.from_model(trained, "digits")  # type: ignore[arg-type]

    def test_a_network_is_not_a_problem(self, trained: nn.Module) -> None:
        with pytest.raises(TypeError, match=r"PruningProblem.*SmallCNN.*from_model"):
            FilterPruneEnv(trained)  # type: ignore[arg-type]


class TestProblemAndConfig:
    @pytest.mark.parametrize(
        "changed", [{"importance": "l2"}, {"calibration_images": 100}, {"prove": True}, {"problem_seed": 1}]
    )
    def test_settings_of_the_problem_must_be_equal(self, problem: PruningProblem, changed: dict[str, Any]) -> None:
        (name,) = changed
        with pytest.raises(ValueError, match=f"{name} .*{changed[name]!r}.*{name}={getattr(CONFIG, name)!r}"):
            FilterPruneEnv(problem, replace(CONFIG, **changed))

    def test_settings_of_evaluation_and_game_may_differ(self, problem: PruningProblem) -> None:
        config = replace(CONFIG, reward_images=50, target_macs=0.7, rounds=2)
        assert FilterPruneEnv(problem, config).config == config


class TestEvaluator:
    def test_of_another_problem(self, problem: PruningProblem) -> None:
        other = LiveEvaluator(copy.copy(problem), CONFIG)
        with pytest.raises(ValueError, match="PruningProblem"):
            FilterPruneEnv(problem, CONFIG, evaluator=other)
        with pytest.raises(ValueError, match="PruningProblem"):
            FilterPruneEnv(problem, CONFIG).clone(evaluator=other)

    @pytest.mark.parametrize("changed", [{"reward_images": 50}, {"finetune_batches": 1}])
    def test_with_other_settings(self, problem: PruningProblem, changed: dict[str, Any]) -> None:
        (name,) = changed
        other = LiveEvaluator(problem, replace(CONFIG, **changed))
        with pytest.raises(ValueError, match=f"{name} .*{getattr(CONFIG, name)}.*{name}={changed[name]}"):
            FilterPruneEnv(problem, CONFIG, evaluator=other)
        with pytest.raises(ValueError, match=name):
            FilterPruneEnv(problem, CONFIG).clone(evaluator=other)

    def test_with_equal_settings_of_another_class(self, problem: PruningProblem) -> None:
        settings = EvaluationConfig(**FAST)
        evaluator = LiveEvaluator(problem, settings)
        assert FilterPruneEnv(problem, CONFIG, evaluator=evaluator).evaluator is evaluator

    def test_resources_are_not_given_to_two(self, problem: PruningProblem) -> None:
        with pytest.raises(ValueError, match="resources"):
            FilterPruneEnv(problem, CONFIG, evaluator=LiveEvaluator(problem, CONFIG), resources=Resources())


class TestOriginalNetwork:
    def test_it_must_classify_something_correctly(self, digits: DataSplits, monkeypatch: pytest.MonkeyPatch) -> None:
        closed: list[LiveEvaluator] = []
        monkeypatch.setattr(LiveEvaluator, "close", lambda evaluator: closed.append(evaluator))
        untrained = create("small_cnn", 10, 1)
        nn.init.zeros_(untrained.classifier.weight)
        untrained.classifier.bias.data = torch.eye(10)[0]  # always the first class
        others = digits.reward.labels != 0
        reward = TensorSplit(digits.reward.images[others], digits.reward.labels[others])
        digits = dataclasses.replace(digits, reward=reward)
        with pytest.raises(ValueError, match="reward images"):
            FilterPruneEnv.from_model(untrained, digits, CONFIG)
        assert len(closed) == 1, "the workers of the evaluator were left running"

    @pytest.mark.parametrize("value", [0.0, -0.2])
    def test_its_metric_must_be_above_0(self, make_env: EnvMaker, value: float) -> None:
        def fixed(network: nn.Module, split: Split) -> float:
            return value

        with pytest.raises(ValueError, match=rf"metric .*fixed is {value}"):
            make_env(metric=fixed)

    def test_reward_amc_needs_a_metric_of_at_most_1(self, make_env: EnvMaker) -> None:
        with pytest.raises(ValueError, match=r"20\.0 .*'amc'"):
            make_env(reward="amc", metric=lambda network, split: 20.0)
        make_env(reward="amc", metric=lambda network, split: 1.0)
        make_env(reward="budget", metric=lambda network, split: 20.0)


class TestActions:
    def test_every_agent_must_act(self, make_env: EnvMaker) -> None:
        env = make_env()
        env.reset()
        with pytest.raises(ValueError, match="'conv_1'"):
            env.step({"conv_0": 0})

    @pytest.mark.parametrize("action", [10, -1, 0.5, "0", None])
    def test_actions_lie_in_their_space(self, make_env: EnvMaker, action: Any) -> None:
        env = make_env()
        env.reset()
        with pytest.raises(ValueError, match=f"action {action!r} of agent 'conv_0'"):
            env.step(dict.fromkeys(env.agents, action))
