"""Statistics of results over seeds: means, intervals, paired differences and ranks.

Letters: S seeds, M methods, B budgets, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance

import numpy as np

LEVEL = 0.95
RESAMPLES = 10_000
BOUNDS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
"""Quantiles that bound an interval."""


@dataclass(frozen=True)
class Mean:
    """A mean with the bounds of its bootstrap interval, which are NaN for a single value."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference(Mean):
    """A mean difference of two methods, paired by seed."""

    p: float
    """p-value of the two-sided paired t-test; NaN if all differences are equal."""
    pairs: int
    """Number of pairs."""


def interval(values: Sequence[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the percentile bootstrap interval (Efron 1979) of the mean over the first axis.

    With few seeds it is too narrow, like every bootstrap interval, because it never exceeds the range of the values.

    Args:
        values: Values [S, ...].

    Returns:
        Lower and upper bounds, [...] each.
    """
    array = np.asarray(values, float)
    if len(array) < 2:
        return np.full(array.shape[1:], math.nan), np.full(array.shape[1:], math.nan)
    count = len(array)
    weights = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES) / count  # [R, S]
    means = np.tensordot(weights, array, 1)  # [R, ...]
    low, high = np.quantile(means, BOUNDS, axis=0)
    return low, high


def mean(values: Sequence[float]) -> Mean:
    """Return the mean and its bootstrap interval."""
    low, high = interval(values)
    return Mean(float(np.mean(values)), float(low), float(high))


def iqm(values: np.ndarray) -> float:
    """Return the interquartile mean: the mean of the middle half of all values (Agarwal et al. 2021)."""
    ordered = np.sort(np.ravel(values))
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean())


def stratified_interval(values: np.ndarray) -> tuple[float, float]:
    """Return the bootstrap interval of the mean over budgets of the interquartile means over seeds.

    Seeds are resampled for every budget alone (stratified, Agarwal et al. 2021, arXiv:2108.13264).

    Args:
        values: Values [S, B].
    """
    if len(values) < 2:
        return np.nan, np.nan
    low, high = np.quantile(resampled(values, np.random.default_rng(0)), BOUNDS)
    return float(low), float(high)


def resampled(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the mean over budgets of the interquartile means over resampled seeds [R], from values [S, B]."""
    seeds = rng.integers(len(values), size=(RESAMPLES, *values.shape))  # [R, S, B]
    sample = np.sort(np.take_along_axis(values[None], seeds, 1), 1)
    cut = len(values) // 4
    means: np.ndarray = sample[:, cut : len(values) - cut].mean((1, 2))
    return means


def difference(ours: Mapping[object, float], theirs: Mapping[object, float]) -> Difference | None:
    """Return the mean of ours minus theirs over their common keys (seeds), or None without common keys."""
    from scipy.stats import ttest_rel

    keys = [key for key in ours if key in theirs]
    if not keys:
        return None
    deltas = np.array([ours[key] - theirs[key] for key in keys])
    low, high = interval(deltas)
    spread = len(keys) > 1 and np.ptp(deltas) > 1e-12
    p = ttest_rel([ours[key] for key in keys], [theirs[key] for key in keys]).pvalue if spread else math.nan
    return Difference(float(deltas.mean()), float(low), float(high), float(p), len(keys))


def mean_ranks(values: Mapping[str, Mapping[object, float]]) -> dict[str, float]:
    """Return the mean rank of every method over the keys that all methods have in common.

    The most accurate method has rank 1, and equal methods share a rank. Ranks are NaN without common keys.
    """
    from scipy.stats import rankdata

    common = set.intersection(*map(set, values.values())) if values else set()
    if not common:
        return dict.fromkeys(values, math.nan)
    table = np.array([[mine[key] for key in sorted(common, key=str)] for mine in values.values()])  # [M, S]
    return dict(zip(values, rankdata(-table, axis=0).mean(1).tolist(), strict=True))


def kendall(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return Kendall's tau-b of two rankings and its p-value; NaN for fewer than three pairs or if all are equal."""
    from scipy.stats import kendalltau

    if len(pairs) < 3:
        return math.nan, math.nan
    found = kendalltau(*zip(*pairs, strict=True))
    return float(found.statistic), float(found.pvalue)


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Return the mean and half the width of its confidence interval (Student's t), NaN for a single value."""
    from scipy.stats import t

    count = len(values)
    if count < 2:
        return fmean(values), math.nan
    return fmean(values), float(t.ppf(0.5 + confidence / 2, count - 1)) * math.sqrt(variance(values) / count)


def difference_interval(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Return mean(a) - mean(b) and half the width of its confidence interval for unequal variances (Welch 1947)."""
    from scipy.stats import t

    errors = [variance(values) / len(values) for values in (a, b)]
    if sum(errors) == 0:
        return fmean(a) - fmean(b), 0.0
    freedom = sum(errors) ** 2 / sum(e**2 / (len(values) - 1) for e, values in zip(errors, (a, b), strict=True))
    return fmean(a) - fmean(b), float(t.ppf(0.5 + confidence / 2, freedom)) * math.sqrt(sum(errors))
