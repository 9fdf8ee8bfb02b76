"""The single-file QMIX learns as well as the package's QMIX."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from prune_env import FilterPruneEnv, make_tabulated_env
from prune_env.game.reward import REWARDS, RewardInput, RoundReward
from qmix_agent import QMIX, QMIXConfig

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from qmix_single_file import Args, train

EPISODES, LAST, SEEDS = 150, 50, 2
MARGIN = 0.03
"""Allowed difference of mean accuracies: two seeds scatter by about so much."""
GAIN = 0.05
"""Least difference that learning makes."""


def accuracies_of(play: Callable[[FilterPruneEnv, int], object]) -> np.ndarray:
    """Return mean accuracies over the seeds: of the best plan, and of the last episodes, after exploration."""
    base = make_tabulated_env(target_macs=0.2)
    means = []
    for seed in range(SEEDS):
        accuracies: list[float] = []

        def reward(step: RewardInput, accuracies: list[float] = accuracies) -> RoundReward:
            if step.last:
                accuracies.append(step.accuracy_after)
            return REWARDS["budget"](step)

        play(FilterPruneEnv(base.problem, base.config, evaluator=base.evaluator, reward=reward), seed)
        means.append((max(accuracies), np.mean(accuracies[-LAST:])))
    return np.mean(means, 0)


def single_file(env: FilterPruneEnv, seed: int, **settings: float) -> None:
    train(env, Args(target_macs=0.2, episodes=EPISODES, seed=seed, **settings))  # type: ignore[arg-type]


def package(env: FilterPruneEnv, seed: int) -> None:
    config = QMIXConfig(
        recurrent=False,
        updates_per_episode=8,
        standardise_returns=True,
        epsilon_episodes=EPISODES // 2,
        eval_every=0,
    )
    QMIX(env, config, seed=seed).learn(EPISODES, progress=False)


@pytest.mark.slow
def test_it_learns_as_well_as_the_package_and_better_than_without_learning() -> None:
    """A learning rate near 0 shows that the margin is a real one."""
    ours, theirs = accuracies_of(single_file), accuracies_of(package)
    without = accuracies_of(lambda env, seed: single_file(env, seed, learning_rate=1e-12))
    assert (ours > theirs - MARGIN).all()
    assert without[1] < theirs[1] - GAIN  # a good plan may be found by chance, not fifty of them
