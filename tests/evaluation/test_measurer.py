"""What is measured by a recording, as on a GPU, played here by a network without one."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from torch import nn

from prune_env import EnvConfig, FilterPruneEnv
from prune_env.data import DataSplits
from prune_env.evaluation.engine.masked import MaskedNetwork
from prune_env.evaluation.measurer import Measurer, Task
from prune_env.pruning import Plan, build
from prune_env.scoring.batchnorm import even_batches, recalibrate

SMALL = EnvConfig(reward_images=300, calibration_images=300, prove=False)


class Recorded:
    """Answers as a recording does, and, like one, can neither be copied nor sent."""

    def __init__(self, task: Task, batch: int) -> None:
        self.task, self.batch, self.asked = task, batch, 0
        self.silenced = MaskedNetwork(task.model, task.groups, task.ranking, dtype=task.dtype)
        self.graph = (number for number in range(3))

    def right(self, plan: Plan) -> int:
        self.asked += 1
        self.silenced.load(plan)
        self.silenced.silence()
        recalibrate(self.silenced.network, even_batches(self.task.calibration, self.batch))
        with torch.inference_mode():
            return int((self.silenced.network(self.task.split.images).argmax(1) == self.task.split.labels).sum())


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Measurer, "_recorded", lambda self: Recorded(self.task, self.batch))


@pytest.fixture
def env(trained: nn.Module, digits: DataSplits, recorded: None) -> FilterPruneEnv:
    return FilterPruneEnv.from_model(trained, digits, SMALL)


def some_plans(env: FilterPruneEnv) -> list[Plan]:
    return [tuple(max(2, round(share * count)) for count in env.problem.full_plan) for share in (0.9, 0.7, 0.5)]


def test_plans_go_to_the_recording_and_networks_do_not(env: FilterPruneEnv) -> None:
    recorded = env.evaluator._measurer._recording
    assert isinstance(recorded, Recorded)
    before = recorded.asked
    for plan in some_plans(env):
        accuracy = env.evaluator.accuracy(plan)
        network = build(env.problem.model, env.groups, env.problem.ranking, plan)
        assert env.evaluator.accuracy_of(network) == pytest.approx(accuracy, abs=0.03)  # sampled statistics
    assert recorded.asked == before + 3


def test_copies_make_a_recording_of_their_own(env: FilterPruneEnv) -> None:
    (plan, *_) = some_plans(env)
    for other in (copy.deepcopy(env), pickle.loads(pickle.dumps(env))):
        assert other.evaluator._measurer._recording is not env.evaluator._measurer._recording
        assert other.evaluator._measurer.accuracy(plan) == env.evaluator.accuracy(plan)


@pytest.mark.usefixtures("recorded")
def test_a_race_against_a_recording_is_refused(trained: nn.Module, digits: DataSplits) -> None:
    with pytest.raises(ValueError, match=r"racing=0\.1 would change nothing: on cpu all images .* set racing=None"):
        FilterPruneEnv.from_model(trained, digits, replace(SMALL, racing=0.1))


def test_answers_of_a_recording_are_kept_apart(env: FilterPruneEnv) -> None:
    """On disk; statistics are taken from other positions."""
    measurer = env.evaluator._measurer
    assert measurer.settings == (measurer.batch, "recorded")
