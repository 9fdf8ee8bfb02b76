"""Temporal-difference targets, by hand and against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qmix_agent import QMIXConfig
from qmix_agent.targets import greedy_values, td_targets


def test_targets_by_hand_with_padding_termination_and_truncation() -> None:
    rewards = torch.tensor([[1.0, 2.0, 3.0, 0.0, 0.0], [1.0, 2.0, 3.0, 4.0, 5.0]])
    terminated = torch.tensor([[0.0, 0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    filled = torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0, 1.0]])
    next_values = torch.tensor([[10.0, 20.0, 99.0, 99.0, 99.0], [10.0, 20.0, 30.0, 40.0, 50.0]]).unsqueeze(-1)
    one_step = td_targets(rewards, terminated, filled, next_values, QMIXConfig(gamma=0.5, td_lambda=0.0))
    # Terminated: 1 + 10/2, 2 + 20/2, 3, padding. Truncated: the last target bootstraps from 50.
    assert one_step.squeeze(-1).tolist() == [[6.0, 12.0, 3.0, 0.0, 0.0], [6.0, 12.0, 18.0, 24.0, 30.0]]
    whole = td_targets(rewards, terminated, filled, next_values, QMIXConfig(gamma=0.5, td_lambda=1.0))
    # Discounted sums: 2 + 3/2, 1 + 3.5/2; and 5 + 50/2 = 30, 4 + 30/2 = 19, 3 + 19/2 = 12.5, 2 + 6.25, 1 + 8.25/2.
    assert whole.squeeze(-1).tolist() == [[2.75, 3.5, 3.0, 0.0, 0.0], [5.125, 8.25, 12.5, 19.0, 30.0]]


horizons = st.builds(QMIXConfig, gamma=st.floats(0, 1), td_lambda=st.floats(0, 1), n_step=st.none() | st.integers(1, 7))


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4), config=horizons, seed=st.integers(0, 10_000))
def test_lambda_returns_are_the_weighted_sum_of_n_step_returns(
    lengths: list[int], config: QMIXConfig, seed: int
) -> None:
    """Compared with the definition, (1 - lambda) sum lambda^(n-1) G^n, without recursion.

    The longest return, limited by the end of the episode or by `n_step`, has the remaining weight.
    """
    rng, longest = np.random.default_rng(seed), max(lengths)
    gamma, td_lambda = config.gamma, config.td_lambda
    rewards, values = rng.normal(size=(2, len(lengths), longest))
    terminated, filled = np.zeros((2, len(lengths), longest))
    for row, length in enumerate(lengths):
        terminated[row, length - 1] = rng.integers(0, 2)
        filled[row, :length] = 1
    as_tensors = [torch.tensor(array) for array in (rewards, terminated, filled)]
    targets = td_targets(*as_tensors, torch.tensor(values).unsqueeze(-1), config).squeeze(-1)
    for row, length in enumerate(lengths):
        for t in range(longest):
            expected = 0.0
            longest_return = min(length - t, config.n_step or length)
            for n in range(1, longest_return + 1):
                g = sum(gamma**k * rewards[row, t + k] for k in range(n))
                g += gamma**n * (1 - terminated[row, t + n - 1]) * values[row, t + n - 1]
                weight = td_lambda ** (n - 1) * (1.0 if n == longest_return else 1 - td_lambda)
                expected += weight * g
            assert targets[row, t].item() == pytest.approx(expected, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 6), config=horizons, terminates=st.booleans(), seed=st.integers(0, 10_000))
def test_corrected_returns_are_the_value_plus_the_discounted_errors(
    length: int, config: QMIXConfig, terminates: bool, seed: int
) -> None:
    """Compared with the definition, Q_t + sum (gamma lambda)^k delta_{t+k}, delta_t = r_t + gamma V_{t+1} - Q_t."""
    rng = np.random.default_rng(seed)
    rewards, values, taken = rng.normal(size=(3, length))  # taken[t] is Q_t
    terminated = np.zeros(length)
    terminated[-1] = terminates
    next_taken = np.append(taken[1:], np.nan)  # the entry of the last step must not be used
    arrays = [torch.tensor(array)[None] for array in (rewards, terminated, np.ones(length))]
    next_values, next_taken_values = (torch.tensor(array)[None, :, None] for array in (values, next_taken))
    targets = td_targets(*arrays, next_values, config, next_taken_values).flatten().tolist()
    errors = rewards + config.gamma * (1 - terminated) * values - taken
    for t in range(length):
        steps = range(min(length - t, config.n_step or length) if config.td_lambda else 1)
        expected = taken[t] + sum((config.gamma * config.td_lambda) ** k * errors[t + k] for k in steps)
        assert targets[t] == pytest.approx(expected, abs=1e-9)


def test_double_q_by_hand() -> None:
    """The online network prefers action 2, which is illegal, then 1. The target network values 1 at 5 and 0 at 7."""
    online = torch.tensor([[[1.0, 4.0, 9.0]]])
    target = torch.tensor([[[7.0, 5.0, 8.0]]])
    masks = torch.tensor([[[True, True, False]]])
    assert greedy_values(online, target, masks, double_q=True).item() == 5.0
    assert greedy_values(online, target, masks, double_q=False).item() == 7.0


def test_without_a_legal_action_the_value_is_finite() -> None:
    q = torch.tensor([[[1.0, 2.0]]])
    assert torch.isfinite(greedy_values(q, q, torch.zeros(1, 1, 2, dtype=torch.bool), double_q=True)).all()
