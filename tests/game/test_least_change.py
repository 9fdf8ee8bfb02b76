"""Greedy plans of least change: the order of their steps, and the budget."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prune_env import make_tabulated_env
from prune_env.game.budget import Budget
from prune_env.game.least_change import LeastChange
from prune_env.pruning.limits import Limits

RATES = (0.0, 0.5)


def product_macs(plans: np.ndarray) -> np.ndarray:
    """MACs of a plain network: every layer reads what the layer before it makes."""
    before = np.concatenate((np.full((*plans.shape[:-1], 1), 3), plans[..., :-1]), -1)
    return (before * plans).sum(-1)


def rules(full: tuple[int, ...], **limits: int) -> Budget:
    return Budget(product_macs, full, RATES, None, Limits(**limits))


def test_a_cost_that_is_flat_at_first_does_not_stop_the_path() -> None:
    """Measured times may not fall until a group has lost several steps; then it is the cheaper of two equal groups."""
    flat = Budget(lambda plans: plans[..., 0] + 3 * np.minimum(plans[..., 1], 28), (32, 32), RATES, None)
    curve = np.linspace(0, 1, 33)
    first, second = LeastChange(flat, [curve, curve]).plan(0.6)
    assert second < first


def test_the_group_that_changes_least_for_its_macs_goes_first() -> None:
    """Both groups cost the same MACs. The second changes the outputs a hundred times as much."""
    curve = np.arange(33.0)
    plain = LeastChange(Budget(lambda plans: plans.sum(-1), (32, 32), RATES, None), [curve, 100 * curve])
    assert plain.plan(0.75) == (16, 32)


def test_macs_count_as_much_as_changes() -> None:
    """The changes are equal, but the filters of the second group save three times the MACs."""
    curve = np.arange(33.0)
    dear = LeastChange(Budget(lambda plans: plans @ np.array([1, 3]), (32, 32), RATES, None), [curve, curve])
    assert dear.plan(0.625) == (32, 16)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(2, 40), min_size=1, max_size=6),
    st.integers(0, 2**32 - 1),
    st.floats(0.2, 1),
    st.integers(1, 4),
    st.integers(1, 4),
)
def test_plans_stay_within_the_budget(full: list[int], seed: int, target: float, fewest: int, multiple: int) -> None:
    rng = np.random.default_rng(seed)
    changes = [np.concatenate(([0.0], rng.exponential(size=count).cumsum())) for count in full]
    budget = rules(tuple(full), min_filters=fewest, round_to=multiple)
    try:
        expected = budget.with_target(target)
    except ValueError:
        with pytest.raises(ValueError, match="target_macs"):
            LeastChange(budget, changes).plan(target)
        return
    plan = LeastChange(budget, changes).plan(target)
    assert product_macs(np.array(plan)) <= expected.cost_range[1]
    assert all(low <= kept <= count for low, kept, count in zip(expected.fewest, plan, full, strict=True))
    assert all(kept % multiple == 0 or kept == count for kept, count in zip(plan, full, strict=True))


def test_plans_of_a_network_without_changes_meet_the_budget() -> None:
    """Outputs that cannot be differentiated change by 0."""
    none = LeastChange(rules((16, 16, 16)), [np.zeros(17)] * 3)
    assert product_macs(np.array(none.plan(0.5))) <= 0.5 * product_macs(np.array((16, 16, 16)))


def test_nothing_is_removed_without_need() -> None:
    assert LeastChange(rules((8, 8)), [np.zeros(9)] * 2).plan(1.0) == (8, 8)


def test_clones_propose_the_same_plans() -> None:
    tabulated = make_tabulated_env(target_macs=0.3)
    assert tabulated.clone(target=0.2).least_change.plan(0.2) == tabulated.least_change.plan(0.2)


def test_the_change_of_a_plan_is_the_sum_over_its_groups() -> None:
    least = LeastChange(rules((4, 3)), [np.array([0, 1, 3, 7, 20.0]), np.array([0, 5, 50, 500.0])])
    assert least.change((4, 3)) == 0
    assert least.change((2, 2)) == 3 + 5
    assert least.change((0, 3)) == 20
    assert least.change(np.array([0, 3], np.uint8)) == 20


@pytest.mark.parametrize("plan", [(5, 3), (4, -1), (4,), (4, 3, 1), (4.0, 3.0), ("4", "3"), (True, True), None])
def test_the_change_of_what_is_no_plan_of_the_network_is_an_error(plan: Any) -> None:
    least = LeastChange(rules((4, 3)), [np.arange(5.0), np.arange(4.0)])
    with pytest.raises(ValueError, match="plan"):
        least.change(plan)
