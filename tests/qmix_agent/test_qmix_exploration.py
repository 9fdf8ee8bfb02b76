"""Who explores, and only among what is legal."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmix_agent import QMIXConfig
from qmix_agent.exploration import choose, epsilon_at, explorers, random_actions


def test_epsilon_falls_linearly_and_stays() -> None:
    config = QMIXConfig(epsilon_start=1.0, epsilon_end=0.2, epsilon_episodes=4)
    assert [epsilon_at(config, n) for n in range(6)] == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.2])
    assert epsilon_at(QMIXConfig(epsilon_episodes=0), 0) == 0.05


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10_000), epsilon=st.floats(0, 1), exploration=st.sampled_from(["agent", "team"]))
def test_actions_are_always_legal(seed: int, epsilon: float, exploration: str) -> None:
    rng = np.random.default_rng(seed)
    masks = rng.integers(0, 2, (4, 5)).astype(bool)
    masks[np.arange(4), rng.integers(0, 5, 4)] = True
    q = np.where(masks, -1e30, 1e30)  # everything illegal looks best
    for _ in range(5):
        assert masks[np.arange(4), choose(q[None], masks[None], [epsilon], [rng], exploration)[0]].all()


def test_random_actions_are_uniform_over_the_legal_ones() -> None:
    rng, masks = np.random.default_rng(0), np.array([[True, False, True, True]])
    counts = np.bincount([random_actions(masks, rng)[0] for _ in range(3000)], minlength=4)
    assert counts[1] == 0
    assert (np.abs(counts[[0, 2, 3]] - 1000) < 120).all()


def test_agents_explore_each_on_its_own() -> None:
    rng = np.random.default_rng(0)
    chosen = np.array([explorers(np.ones((6, 3), dtype=bool), 0.3, rng, "agent") for _ in range(2000)])
    assert chosen.mean(axis=0) == pytest.approx([0.3] * 6, abs=0.04)
    assert np.corrcoef(chosen.T)[0, 1] == pytest.approx(0.0, abs=0.1)


def test_a_team_explores_together_one_to_all_of_those_with_a_choice() -> None:
    rng, masks = np.random.default_rng(0), np.ones((6, 3), dtype=bool)
    masks[5, 1:] = False
    sizes = np.array([explorers(masks, 0.3, rng, "team").sum() for _ in range(3000)])
    assert (sizes == 0).mean() == pytest.approx(0.7, abs=0.04)
    assert np.bincount(sizes[sizes > 0], minlength=6)[1:] / (sizes > 0).sum() == pytest.approx([0.2] * 5, abs=0.06)
    assert not explorers(masks, 1.0, rng, "team")[5]
    assert not explorers(masks[5:], 1.0, rng, "team").any()  # nobody has a choice
