"""Running mean and standard deviation of returns, and rewards standardised with them.

Shapes: B episodes, T steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch


@dataclass
class ReturnScale:
    """Mean and standard deviation of the discounted returns from every step played so far (Welford 1962).

    With `standardise_returns`, networks learn (value - mean) / std. This is the normalisation of PopArt (van Hasselt
    et al. 2016, arXiv:1602.07714, equation 1) without its correction of the last layer when the statistics change, as
    in EPyMARL's q_learner.py. Unlike in both, the statistics are those of the returns as played, not of bootstrapped
    targets, and all episodes have equal weight. The ranking of policies is that of the original rewards.
    """

    count: int = 0
    """Number of steps."""
    mean: float = 0.0
    """Mean return."""
    sum_of_squares: float = 0.0
    """Sum of squared distances from the mean."""

    def add(self, rewards: np.ndarray, gamma: float) -> None:
        """Add the returns of one episode.

        Args:
            rewards: Rewards of the episode, [T]. After a truncation, further rewards count as 0.
            gamma: Discount factor.
        """
        discounted = 0.0
        for reward in reversed(rewards.tolist()):
            discounted = reward + gamma * discounted
            self.count += 1
            distance = discounted - self.mean
            self.mean += distance / self.count
            self.sum_of_squares += distance * (discounted - self.mean)

    @property
    def std(self) -> float:
        """Standard deviation of the returns; 1 while all returns are equal up to rounding."""
        std = math.sqrt(self.sum_of_squares / self.count) if self.count else 0.0
        # Rewards are float32, so smaller deviations are rounding errors.
        return std if std > 1e-6 * max(1.0, abs(self.mean)) else 1.0

    def standardise(self, rewards: torch.Tensor, terminated: torch.Tensor, gamma: float) -> torch.Tensor:
        """Return rewards whose discounted values are the standardised values of `rewards`.

        Let V = r + gamma V' and V = mean + std * v. Then v = (r - (1 - gamma) mean) / std + gamma v'. After a
        terminated step there is no V', and the whole mean is subtracted.

        Args:
            rewards: Rewards, [B, T].
            terminated: 1 for terminated steps, otherwise 0, [B, T].
            gamma: Discount factor.

        Returns:
            Standardised rewards, [B, T].
        """
        level = self.mean * (1 - gamma * (1 - terminated.double()))
        return ((rewards.double() - level) / self.std).to(rewards.dtype)
