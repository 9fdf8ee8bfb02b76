"""From plans to a network, and the folder of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from prune_env import FilterPruneEnv, runs
from prune_env.data import Split
from prune_env.finalise import accuracy, choose, distil_fully
from prune_env.training.distillation import DistillationConfig

SHORT = DistillationConfig(epochs=2, min_steps=20, batch_size=64)
PLANS = [(20, 20, 40, 40, 80), (32, 10, 64, 20, 128), (20, 20, 40, 40, 80)]


class Forbidden(Split):
    """The test set: its images must not be looked at."""

    def __getattribute__(self, name: str) -> object:
        raise AssertionError(f"{name} of the test set was read")


@pytest.fixture
def env(make_env: Callable[..., FilterPruneEnv]) -> FilterPruneEnv:
    env = make_env()
    digest = env.data.digest
    env.data = dataclasses.replace(env.data, test=Forbidden.__new__(Forbidden))
    object.__setattr__(env.data, "digest", digest)
    return env


def test_the_choice_ranks_distinct_plans_without_the_test_set(env: FilterPruneEnv, tmp_path: Path) -> None:
    finalists = choose(env, PLANS, SHORT, checkpoints=tmp_path, progress=False)
    assert sorted(finalist.plan for finalist in finalists) == sorted(set(PLANS))
    scores = [finalist.distilled_accuracy for finalist in finalists]
    assert scores == sorted(scores, reverse=True)
    assert all(finalist.distilled_accuracy > finalist.recalibrated_accuracy for finalist in finalists)
    assert choose(env, PLANS[::-1], SHORT, checkpoints=tmp_path, progress=False) == finalists, "found again on disk"


def test_the_full_distillation_is_at_least_as_good(env: FilterPruneEnv) -> None:
    short = choose(env, PLANS[:1], SHORT, progress=False)[0]
    full = distil_fully(env, PLANS[0], dataclasses.replace(SHORT, epochs=8), progress=False)
    assert accuracy(full, env.data, env.data.reward) >= short.distilled_accuracy - 0.01


def test_no_plans(env: FilterPruneEnv) -> None:
    with pytest.raises(ValueError, match="no finished plans"):
        choose(env, [], SHORT)


class TestDirectory:
    def test_numbers_go_up_and_resume_takes_the_latest(self, tmp_path: Path) -> None:
        settings = {"episodes": 3, "path": tmp_path}
        one, two = (runs.directory(tmp_path, None, "vgg16-cifar[10]", settings, False) for _ in range(2))
        assert (one.name, two.name) == ("vgg16-cifar[10]-1", "vgg16-cifar[10]-2")
        assert runs.directory(tmp_path, None, "vgg16-cifar[10]", settings, True) == two

    def test_refusals(self, tmp_path: Path) -> None:
        runs.directory(tmp_path, "mine", "stem", {"episodes": 3}, False)
        with pytest.raises(FileExistsError, match="--resume"):
            runs.directory(tmp_path, "mine", "stem", {"episodes": 3}, False)
        with pytest.raises(ValueError, match=r"other settings \(episodes\)"):
            runs.directory(tmp_path, "mine", "stem", {"episodes": 4}, True)
        with pytest.raises(FileNotFoundError, match="no run to resume"):
            runs.directory(tmp_path, "typo", "stem", {"episodes": 3}, True)
