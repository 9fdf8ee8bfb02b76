"""The measurer with a recording, as on a GPU; here a masked network without CUDA stands for it."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from episodes import EnvMaker
from torch import nn

from prune_env import PruningProblem
from prune_env.data import DataSplits
from prune_env.evaluation.config import EvaluationConfig
from prune_env.evaluation.engine.masked import MaskedNetwork
from prune_env.evaluation.live import LiveEvaluator
from prune_env.evaluation.measurer import Measurer, Task
from prune_env.pruning import Plan
from prune_env.scoring.batchnorm import even_batches, recalibrate

CONFIG = EvaluationConfig(reward_images=300, calibration_images=300, prove=False)


class FakeRecording:
    """Counts as a recording does, and can neither be copied nor pickled, like one."""

    def __init__(self, task: Task, batch_size: int) -> None:
        self.task, self.batch_size = task, batch_size
        self.plans: list[Plan] = []
        self.masked = MaskedNetwork(task.model, task.groups, task.ranking, dtype=task.dtype)
        self.uncopyable = (number for number in range(3))

    def count_correct(self, plan: Plan) -> int:
        self.plans.append(plan)
        self.masked.load(plan)
        self.masked.apply()
        recalibrate(self.masked.network, even_batches(self.task.calibration, self.batch_size))
        with torch.inference_mode():
            return int((self.masked.network(self.task.split.images).argmax(1) == self.task.split.labels).sum())


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> list[FakeRecording]:
    """All recordings that measurers have made."""
    made: list[FakeRecording] = []

    def make(task: Task, batch_size: int) -> FakeRecording:
        made.append(FakeRecording(task, batch_size))
        return made[-1]

    monkeypatch.setattr("prune_env.evaluation.measurer.make_recording", make)
    return made


@pytest.fixture
def problem(trained: nn.Module, digits: DataSplits) -> PruningProblem:
    return PruningProblem.create(trained, digits, CONFIG)


@pytest.fixture
def plans(problem: PruningProblem) -> list[Plan]:
    return [tuple(max(2, round(share * count)) for count in problem.full_plan) for share in (0.9, 0.7, 0.5)]


def test_plans_are_measured_by_the_recording_and_networks_are_not(
    recordings: list[FakeRecording], problem: PruningProblem, plans: list[Plan]
) -> None:
    evaluator = LiveEvaluator(problem, CONFIG)
    (recording,) = recordings
    recording.plans.clear()
    for plan in plans:
        accuracy = evaluator.accuracy(plan)
        network = problem.build(plan)
        assert evaluator.accuracy_of(network) == pytest.approx(accuracy, abs=0.03)  # statistics of other positions
    assert recording.plans == plans


def test_a_copied_evaluator_makes_a_recording_of_its_own(
    recordings: list[FakeRecording], problem: PruningProblem, plans: list[Plan]
) -> None:
    evaluator = LiveEvaluator(problem, CONFIG)
    accuracy = evaluator.accuracy(plans[0])
    for number, duplicate in enumerate((copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))), 2):
        twin: Any = duplicate(evaluator)
        assert len(recordings) == number
        twin.memory.clear()
        assert twin.accuracy(plans[0]) == accuracy
        assert recordings[-1].plans == [plans[0]]


def test_accuracies_of_a_recording_have_other_settings(
    recordings: list[FakeRecording], problem: PruningProblem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache keeps them apart, because a recording takes its statistics from other positions."""
    task = LiveEvaluator(problem, CONFIG).task
    recorded = Measurer(task)
    monkeypatch.setattr("prune_env.evaluation.measurer.make_recording", lambda *_: None)
    assert Measurer(task).settings != recorded.settings


def test_a_processor_needs_no_recording(make_env: EnvMaker) -> None:
    measurer = Measurer(make_env().evaluator.task)
    assert measurer.settings == (measurer.batch_size,)


def test_stored_statistics_are_used_on_request(problem: PruningProblem, plans: list[Plan]) -> None:
    measurer = Measurer(LiveEvaluator(problem, CONFIG).task)
    assert measurer.accuracy(plans[2], recalibrated=False) < measurer.accuracy(plans[2]) - 0.05
