"""Counting that stops once it is clear that a plan is worse than what matters (Hoeffding races, Maron and Moore 1994).

After each batch the accuracy on all images is bounded from above by the inequality for sampling without replacement
(Serfling 1974, corollary 1.1): with n of N images seen and k of them right,

    accuracy <= k/n + sqrt((1 - (n - 1)/N) ln(1/delta) / (2 n))    with probability of at least 1 - delta.

It holds for images in random order, and for one look; with several looks the chance of being wrong at any is at most
their number times delta.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Race:
    """What a plan runs against."""

    threshold: float
    """An accuracy; below it, no exact number is needed."""
    delta: float
    """Probability, at each look, of giving up a plan that is as good as the threshold."""

    def is_lost(self, right: int, seen: int, total: int) -> bool:
        """Whether the accuracy on all `total` images is below the threshold, as far as can be told from `seen`."""
        if seen == total:
            return False
        slack = math.sqrt((1 - (seen - 1) / total) * math.log(1 / self.delta) / (2 * seen))
        return min(right / seen + slack, (right + total - seen) / total) < self.threshold
