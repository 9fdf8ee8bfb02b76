"""From plans to one network: finalists, the winner's distillation and the teacher that they share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from prune_env import EnvConfig, FilterPruneEnv, PruningProblem
from prune_env.data import DataSplits, Split
from prune_env.finalise import Finaliser, accuracy, recalibrated
from prune_env.training.distillation import DistillationConfig, Teacher

SHORT = DistillationConfig(epochs=2, min_steps=20, batch_size=64)
BRIEF = dataclasses.replace(SHORT, epochs=1, min_steps=0)
PLANS = [(20, 20, 40, 40, 80), (32, 10, 64, 20, 128), (20, 20, 40, 40, 80)]


class Forbidden(Split):
    """A test set that fails when it is read."""

    def __getattribute__(self, name: str) -> object:
        raise AssertionError(f"{name} of the test set was read")


class CountingTeacher(Teacher):
    """Counts the forward passes of the teacher's network."""

    passes = 0

    def compute(self, images: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        return super().compute(images)


@pytest.fixture
def env(trained: nn.Module, digits: DataSplits) -> FilterPruneEnv:
    """An environment whose test set must not be read."""
    config = EnvConfig(reward_images=100, calibration_images=200, prove=False)
    problem = PruningProblem.create(trained, digits, config)
    data = dataclasses.replace(digits, test=Forbidden.__new__(Forbidden))
    object.__setattr__(data, "fingerprint", digits.fingerprint)  # computing it reads every split
    return FilterPruneEnv(dataclasses.replace(problem, data=data), config)


def test_ranking_takes_distinct_plans_and_resumes_from_disk(env: FilterPruneEnv, tmp_path: Path) -> None:
    finaliser = Finaliser(env, SHORT, checkpoints=tmp_path, progress=False)
    finalists = finaliser.rank(PLANS)
    assert sorted(finalist.plan for finalist in finalists) == sorted(set(PLANS))
    accuracies = [finalist.distilled_accuracy for finalist in finalists]
    assert accuracies == sorted(accuracies, reverse=True)
    assert all(finalist.distilled_accuracy > finalist.recalibrated_accuracy for finalist in finalists)
    assert finaliser.rank(PLANS[::-1]) == finalists


def test_full_distillation_is_at_least_as_good_as_the_short_one(env: FilterPruneEnv) -> None:
    short = Finaliser(env, SHORT, progress=False).rank(PLANS[:1])[0]
    full = Finaliser(env, dataclasses.replace(SHORT, epochs=8), progress=False).distil(PLANS[0])
    assert accuracy(full, env.problem.data, env.problem.data.reward) >= short.distilled_accuracy - 0.01


def test_a_shared_teacher_computes_each_batch_once(env: FilterPruneEnv) -> None:
    """Finalists and winner train on the same batches."""
    teacher, epoch = CountingTeacher(env.problem.model), len(env.problem.data.train) // BRIEF.batch_size
    finaliser = Finaliser(env, BRIEF, short_epochs=0.5, teacher=teacher, progress=False)
    finalists = finaliser.rank(PLANS)
    assert teacher.passes == round(epoch / 2)
    finaliser.distil(PLANS[0])
    assert teacher.passes == epoch
    assert Finaliser(env, BRIEF, short_epochs=0.5, progress=False).rank(PLANS) == finalists


def test_a_teacher_of_another_network_is_refused(env: FilterPruneEnv) -> None:
    with pytest.raises(ValueError, match="teacher"):
        Finaliser(env, SHORT, teacher=Teacher(recalibrated(env, PLANS[0])))


def test_a_network_instead_of_a_teacher_is_refused(env: FilterPruneEnv) -> None:
    with pytest.raises(TypeError, match="SmallCNN"):
        Finaliser(env, SHORT, teacher=env.problem.model)  # type: ignore[arg-type]


def test_no_plans_are_refused(env: FilterPruneEnv) -> None:
    with pytest.raises(ValueError, match="plans"):
        Finaliser(env, SHORT).rank([])


def test_recalibrated_networks_have_the_original_weights(env: FilterPruneEnv) -> None:
    """Only BatchNorm statistics differ from the plan's own network."""
    network, built = recalibrated(env, PLANS[0]), env.problem.build(PLANS[0])
    for (name, found), expected in zip(network.named_parameters(), built.parameters(), strict=True):
        assert torch.equal(found, expected), name
    assert not torch.equal(network.features[1].running_mean, built.features[1].running_mean)


def test_finalising_works_with_a_custom_metric(make_env: Callable[..., FilterPruneEnv], digits: DataSplits) -> None:
    def negative_error(network: nn.Module, split: Split) -> float:
        return 2.0 - float((network(split.images).argmax(1) != split.labels).float().mean())

    config = EnvConfig(reward_images=100, calibration_images=200, prove=False)
    env = FilterPruneEnv.from_model(make_env().problem.model, digits, config, metric=negative_error)
    (finalist,) = Finaliser(env, BRIEF, short_epochs=0.5, progress=False).rank(PLANS[:1])
    assert 1 < finalist.recalibrated_accuracy < finalist.distilled_accuracy <= 2
