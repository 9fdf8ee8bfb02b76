"""How well some values rank others: Kendall's tau with bootstrap intervals.

Letters: N things that are ranked, M pairs of rankings, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

FEWEST = 10
"""Things that a rank correlation needs."""
RESAMPLES = 2000
BOUNDS = (0.025, 0.975)
"""Quantiles that bound an interval."""
Pair = tuple[np.ndarray, np.ndarray]
"""What is known of N things, and what came out."""


class RankCorrelation(NamedTuple):
    """Kendall's tau-b (Kendall 1945), from -1 to 1, or a difference of two, with the bounds of its 95 % interval.

    The interval comes from resampling things (percentile bootstrap, Efron 1979). It tells how much the value depends on
    the things that were chosen, and nothing about other sources of chance.
    """

    tau: float
    low: float
    high: float
    number: int
    """Number of things."""

    def __str__(self) -> str:
        return f"{self.tau:.2f} [{self.low:.2f}, {self.high:.2f}], N = {self.number}"


def rank_correlation(pairs: Sequence[Pair]) -> RankCorrelation | None:
    """Return the mean rank correlation of several pairs of rankings of the same things.

    Args:
        pairs: M pairs of values, [N] each. Things with NaN in any of them do not count.

    Returns:
        The correlation, or None with fewer than `FEWEST` things, or where a ranking has no order.
    """
    counted = _counted(pairs)
    return _summary(_taus(pairs, counted), counted) if counted.sum() >= FEWEST else None


def rank_difference(first: Sequence[Pair], second: Sequence[Pair]) -> RankCorrelation | None:
    """Return how much better the first pairs correlate than the second ones, over things that all of them have.

    Args:
        first: Pairs of values, [N] each.
        second: Pairs of values of the same things.

    Returns:
        The difference, or None with fewer than `FEWEST` things, or where a ranking has no order.
    """
    counted = _counted([*first, *second])
    if counted.sum() < FEWEST:
        return None
    return _summary(_taus(first, counted) - _taus(second, counted), counted)


def _counted(pairs: Sequence[Pair]) -> np.ndarray:
    """Return which things have a value in all pairs, [N]; none if there are no pairs."""
    if not pairs:
        return np.zeros(0, bool)
    return np.logical_and.reduce([~np.isnan(values) for pair in pairs for values in pair])


def _summary(taus: np.ndarray, counted: np.ndarray) -> RankCorrelation | None:
    """Summarise values [1 + R]: that of all things, then those of the resamples."""
    if np.isnan(taus[0]):
        return None
    low, high = np.nanquantile(taus[1:], BOUNDS)
    return RankCorrelation(float(taus[0]), float(low), float(high), int(counted.sum()))


def _taus(pairs: Sequence[Pair], counted: np.ndarray) -> np.ndarray:
    """Return the mean tau-b of the pairs, for all things that count and for every resample of them, [1 + R]."""
    size = int(counted.sum())
    drawn = np.random.default_rng(0).multinomial(size, np.full(size, 1 / size), RESAMPLES)
    times = np.concatenate((np.ones((1, size)), drawn))  # [1 + R, N], how often each thing is there
    taus = []
    for first, second in pairs:
        one, two = _order(first[counted]), _order(second[counted])
        agreed, ordered, ordered_too = (((times @ sums) * times).sum(1) for sums in (one * two, one**2, two**2))
        with np.errstate(invalid="ignore"):  # resamples without an order are NaN
            taus.append(agreed / np.sqrt(ordered * ordered_too))
    return np.mean(taus, axis=0)


def _order(values: np.ndarray) -> np.ndarray:
    """Return the order of every two things [N, N]: 1, -1, or 0 if they are equal."""
    return (values[:, None] > values[None, :]).astype(float) - (values[:, None] < values[None, :])
