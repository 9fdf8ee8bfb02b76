"""Rank correlations: known answers, what does not count, and intervals that cover."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau

from prune_env.common.rank_correlation import FEWEST, rank_correlation, rank_difference


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=FEWEST, max_size=40))
def test_it_is_that_of_scipy(values: list[tuple[int, int]]) -> None:
    first, second = np.array(values, float).T
    expected, found = kendalltau(first, second).statistic, rank_correlation([(first, second)])
    if np.isnan(expected):
        assert found is None
    else:
        assert found is not None
        assert found.tau == pytest.approx(expected)
        assert found.number == len(values)


def test_infinite_values_have_a_rank() -> None:
    values = np.arange(12.0)
    found = rank_correlation([(np.where(values < 2, -np.inf, values), values)])
    assert found is not None
    assert found.tau == pytest.approx(kendalltau(np.maximum(values, 1), values).statistic)


def test_things_without_a_value_in_one_pair_count_in_none() -> None:
    rng = np.random.default_rng(0)
    first, second, other = rng.random((3, 30))
    other[:10] = np.nan
    taus = [kendalltau(first[10:], values[10:]).statistic for values in (second, other)]
    found = rank_correlation([(first, second), (first, other)])
    assert found is not None
    assert (found.tau, found.number) == (pytest.approx(np.mean(taus)), 20)


@pytest.mark.parametrize("values", [np.arange(FEWEST - 1.0), np.zeros(20), np.full(20, np.nan)])
def test_too_few_things_and_values_without_an_order_have_none(values: np.ndarray) -> None:
    assert rank_correlation([(values, np.arange(float(len(values))))]) is None


def test_the_interval_covers() -> None:
    """Of 100 samples from a known distribution, about 95 intervals hold its tau, which is 2 / pi * arcsin(rho)."""
    rng, covered = np.random.default_rng(0), 0
    truth = 2 / np.pi * np.arcsin(0.6)
    for _ in range(100):
        first, second = rng.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], 40).T
        found = rank_correlation([(first, second)])
        assert found is not None
        covered += found.low <= truth <= found.high
    assert 85 <= covered <= 100


def test_a_difference_is_paired() -> None:
    """Two scores that share most of their noise differ clearly, although their intervals overlap."""
    rng = np.random.default_rng(0)
    truth, noise = rng.normal(size=(2, 60))
    better, worse = truth + noise, truth + 1.6 * noise
    one, two = rank_correlation([(better, truth)]), rank_correlation([(worse, truth)])
    found, swapped = (
        rank_difference([(first, truth)], [(second, truth)]) for first, second in ((better, worse), (worse, better))
    )
    assert one is not None
    assert two is not None
    assert found is not None
    assert swapped is not None
    assert found.tau == pytest.approx(one.tau - two.tau)
    assert two.high > one.low
    assert found.low > 0
    assert (swapped.tau, swapped.low, swapped.high) == pytest.approx((-found.tau, -found.high, -found.low))
