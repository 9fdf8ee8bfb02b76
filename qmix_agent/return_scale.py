"""The level and the unit that returns are learned in."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch


@dataclass
class ReturnScale:
    """Mean and standard deviation of the discounted returns from every step played so far (Welford 1962).

    Networks learn a value's distance from the mean, in deviations (PopArt, van Hasselt et al. 2016, arXiv:1602.07714,
    equation 1), without PopArt's correction of the last layer when the statistics move, like EPyMARL's q_learner.py.
    Unlike both, the statistics are of returns as they were played, not of bootstrapped targets, all episodes alike. The
    order of policies stays that of the rewards as they are.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    """Sum of squared distances from the mean."""

    def add(self, rewards: np.ndarray, gamma: float) -> None:
        """Takes one more episode into account: rewards [T]. The unknown rest of a truncated one counts as 0."""
        discounted = 0.0
        for reward in reversed(rewards.tolist()):
            discounted = reward + gamma * discounted
            self.count += 1
            distance = discounted - self.mean
            self.mean += distance / self.count
            self.squares += distance * (discounted - self.mean)

    @property
    def deviation(self) -> float:
        """1 while all returns are equal."""
        deviation = math.sqrt(self.squares / self.count) if self.count else 0.0
        # Rewards are float32: what is smaller is rounding.
        return deviation if deviation > 1e-6 * max(1.0, abs(self.mean)) else 1.0

    def standardised(self, rewards: torch.Tensor, terminated: torch.Tensor, gamma: float) -> torch.Tensor:
        """The rewards [B, T] whose values, discounted by `gamma`, are those of `rewards`, standardised.

        A value V that its reward and the next value make, V = r + gamma V', is the mean + deviation * v where
        v = (r - (1 - gamma) mean) / deviation + gamma v'. After a terminated step there is no V' to have a mean.
        """
        level = self.mean * (1 - gamma * (1 - terminated.double()))
        return ((rewards.double() - level) / self.deviation).to(rewards.dtype)
