"""The running scale of returns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from qmix_helpers import an_episode

from qmix_agent import QMIXConfig
from qmix_agent.replay_buffer import make_batch
from qmix_agent.return_scale import ReturnScale
from qmix_agent.targets import td_targets


def test_the_scale_is_that_of_the_returns_from_every_step() -> None:
    scale = ReturnScale()
    assert (scale.mean, scale.std) == (0.0, 1.0)
    scale.add(np.array([1.0, 0.0, 4.0], np.float32), gamma=0.5)  # returns 1 + 0 + 1, 0 + 2, 4
    assert (scale.mean, scale.std) == pytest.approx((8 / 3, (8 / 9) ** 0.5))
    scale.add(np.array([2.0], np.float32), gamma=0.5)
    assert (scale.count, scale.mean, scale.std) == pytest.approx((4, 2.5, 0.75**0.5))


@pytest.mark.parametrize("other", [100.0, np.nextafter(np.float32(100), np.float32(200))])
def test_returns_that_differ_by_rounding_have_unit_scale(other: float) -> None:
    scale = ReturnScale()
    for reward in (100.0, other):
        scale.add(np.array([reward], np.float32), gamma=1.0)
    assert (scale.mean, scale.std) == (pytest.approx(100), 1.0)


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("td_lambda", [0.0, 0.6])
@pytest.mark.parametrize("corrected", [True, False])
def test_standardised_rewards_have_standardised_targets(gamma: float, td_lambda: float, corrected: bool) -> None:
    batch = make_batch([an_episode(4, True), an_episode(2, True, seed=1), an_episode(3, False, seed=2)])
    scale, config = ReturnScale(count=3, mean=5.0, sum_of_squares=12.0), QMIXConfig(gamma=gamma, td_lambda=td_lambda)
    assert scale.std == 2.0
    values, taken = torch.randn(2, *batch.rewards.shape, 1, generator=torch.Generator().manual_seed(0))
    ends = batch.terminated, batch.filled
    rewards = scale.standardise(batch.rewards, batch.terminated, gamma)
    standardised = td_targets(rewards, *ends, values, config, taken if corrected else None)
    plain = td_targets(batch.rewards, *ends, 2 * values + 5, config, 2 * taken + 5 if corrected else None)
    played = batch.filled.bool()
    torch.testing.assert_close(2 * standardised[played] + 5, plain[played])
