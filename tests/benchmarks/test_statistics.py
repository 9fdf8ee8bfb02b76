"""Interquartile means and stratified bootstrap intervals have known values."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.compare import statistics


@pytest.mark.parametrize(
    ("values", "expected"),
    [([7.0], 7.0), ([1.0, 2.0], 1.5), ([0.0, 1.0, 2.0, 100.0], 1.5), ([8, 1, 7, 2, 6, 3, 5, 4], 4.5)],
)
def test_the_interquartile_mean_leaves_out_a_quarter_at_each_end(values: list[float], expected: float) -> None:
    assert statistics.iqm(np.array(values)) == expected


def test_known_intervals() -> None:
    assert statistics.stratified_interval(np.full((3, 2), 0.25)) == (0.25, 0.25)
    assert statistics.stratified_interval(np.array([[0.0], [1.0]])) == (0.0, 1.0), (
        "each end is a quarter of the resamples"
    )
    assert np.isnan(statistics.stratified_interval(np.array([[0.5, 0.6]]))).all()


def test_seeds_are_resampled_for_every_budget_alone() -> None:
    """The mean of 100 independent budgets varies a tenth as much as one of them."""
    low, high = statistics.stratified_interval(np.repeat([[0.0], [1.0]], 100, 1))
    expected = 1.96 * np.sqrt(0.5 * 0.25) / 10  # the mean of two resampled seeds has variance 0.25 / 2
    assert (0.5 - low, high - 0.5) == (pytest.approx(expected, rel=0.1), pytest.approx(expected, rel=0.1))
