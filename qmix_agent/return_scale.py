"""The level and the unit that returns are learned in."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass
class ReturnScale:
    """Running mean and standard deviation of the returns that steps were followed by (Welford 1962).

    What the networks compute is the value's distance from the mean, in deviations: as in PopArt (van Hasselt et al.
    2016, arXiv:1602.07714, equation 1), without its correction of the last layer when the statistics move, which is how
    EPyMARL standardises returns (Papoudakis et al. 2021, arXiv:2006.07869). The values that follow from it, and so the
    order of policies, are those of the rewards as they are.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    """Sum of squared distances from the mean."""

    def add(self, rewards: np.ndarray, gamma: float) -> None:
        """Takes one more episode into account: rewards [T], what is left of a truncated one is not known."""
        follows = 0.0
        for reward in reversed(rewards.tolist()):
            follows = reward + gamma * follows
            self.count += 1
            distance = follows - self.mean
            self.mean += distance / self.count
            self.squares += distance * (follows - self.mean)

    @property
    def deviation(self) -> float:
        """1 while all returns are equal."""
        deviation = math.sqrt(self.squares / self.count) if self.count else 0.0
        return deviation if deviation > 1e-8 * max(1.0, abs(self.mean)) else 1.0
