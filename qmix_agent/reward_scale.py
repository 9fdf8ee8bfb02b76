"""The unit that rewards are learned in."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class RewardScale:
    """Running standard deviation of episode returns (Welford 1962).

    Rewards are divided by it and not shifted: a constant added to every step would change which policy is best wherever
    episodes differ in length.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    """Sum of squared distances from the mean."""

    def add(self, episode_return: float) -> None:
        """Takes one more episode into account."""
        self.count += 1
        distance = episode_return - self.mean
        self.mean += distance / self.count
        self.squares += distance * (episode_return - self.mean)

    @property
    def factor(self) -> float:
        """What to multiply rewards by; 1 while all returns are equal."""
        deviation = math.sqrt(self.squares / self.count) if self.count else 0.0
        return 1.0 / deviation if deviation > 1e-8 * max(1.0, abs(self.mean)) else 1.0
