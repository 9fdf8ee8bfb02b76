"""The epsilon schedule and epsilon-greedy actions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmix_agent import QMIXConfig
from qmix_agent.exploration import epsilon_at, epsilon_greedy_actions


def test_epsilon_falls_linearly_and_then_stays() -> None:
    config = QMIXConfig(epsilon_start=1.0, epsilon_end=0.2, epsilon_episodes=4)
    assert [epsilon_at(config, n) for n in range(6)] == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.2])
    assert epsilon_at(QMIXConfig(epsilon_episodes=0), 0) == 0.05


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10_000), epsilon=st.floats(0, 1))
def test_actions_are_always_legal(seed: int, epsilon: float) -> None:
    rng = np.random.default_rng(seed)
    masks = rng.integers(0, 2, (4, 5)).astype(bool)
    masks[np.arange(4), rng.integers(0, 5, 4)] = True
    q = np.where(masks, -1e30, 1e30)  # illegal actions have the largest values
    for _ in range(5):
        assert masks[np.arange(4), epsilon_greedy_actions(q[None], masks[None], [epsilon], [rng])[0]].all()


def test_without_exploration_the_best_legal_action_is_chosen() -> None:
    q = np.array([[[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]]])
    masks = np.array([[[False, True, True], [True, True, True]]])
    assert epsilon_greedy_actions(q, masks, [0.0], [np.random.default_rng(0)]).tolist() == [[1, 2]]


def test_random_actions_are_uniform_over_the_legal_ones() -> None:
    rng, masks = np.random.default_rng(0), np.array([[[True, False, True, True]]])
    actions = [epsilon_greedy_actions(np.zeros((1, 1, 4)), masks, [1.0], [rng])[0, 0] for _ in range(3000)]
    counts = np.bincount(actions, minlength=4)
    assert counts[1] == 0
    assert (np.abs(counts[[0, 2, 3]] - 1000) < 120).all()


def test_agents_explore_independently_with_probability_epsilon() -> None:
    rng, masks = np.random.default_rng(0), np.ones((1, 6, 1000), dtype=bool)
    q = np.zeros((1, 6, 1000))
    q[..., 0] = 1.0  # a random action is almost never action 0
    explored = np.array([epsilon_greedy_actions(q, masks, [0.3], [rng])[0] != 0 for _ in range(2000)])
    assert explored.mean(axis=0) == pytest.approx([0.3] * 6, abs=0.04)
    assert np.corrcoef(explored.T)[0, 1] == pytest.approx(0.0, abs=0.1)


def test_the_actions_of_a_game_do_not_depend_on_the_other_games() -> None:
    rng = np.random.default_rng(0)
    q, masks, epsilons = rng.normal(size=(3, 4, 5)), np.ones((3, 4, 5), dtype=bool), [0.0, 0.5, 1.0]

    def fresh_rngs() -> list[np.random.Generator]:
        return [np.random.default_rng(seed) for seed in range(3)]

    together = epsilon_greedy_actions(q, masks, epsilons, fresh_rngs())
    for game, one_rng in enumerate(fresh_rngs()):
        alone = epsilon_greedy_actions(q[[game]], masks[[game]], [epsilons[game]], [one_rng])
        assert np.array_equal(alone[0], together[game])
