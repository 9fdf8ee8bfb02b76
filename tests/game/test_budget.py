"""Budget: what a rate removes, which rates are legal, and what the target means in MACs."""

from __future__ import annotations

import dataclasses
import itertools
import math
import pickle
import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from layered import BY_HAND, EQUAL_COSTS, RATES, VGG16, Network, chain, networks

from prune_env.game.budget import Budget, cost_range
from prune_env.pruning.limits import Limits

# The target in MACs, and the distance to it

targets = st.floats(0.011, 1) | st.integers(2, 100).map(lambda percent: percent / 100)


@given(targets, st.integers(1, 10**13))
@example(0.29, 100)  # 0.29 * 100 < 29 in floats
@example(1 / 3, 9)  # 1/3 is not a finite decimal
def test_the_most_macs_meet_the_target_and_one_more_does_not(target: float, full: int) -> None:
    fewest, most = cost_range(target, full)
    assert most / full <= target < (most + 1) / full
    assert fewest <= most + 1
    assert fewest / full >= target - Budget.tolerance - 1e-12
    assert (fewest - 1) / full < target - Budget.tolerance + 1e-12


def test_the_target_counts_as_the_decimal_that_is_written() -> None:
    assert cost_range(0.29, 100) == (28, 29)
    assert cost_range(0.3, 10**6) == (290_000, 300_000)
    assert cost_range(1, 7) == (7, 7)


def test_a_plan_meets_a_budget_within_the_tolerance_below_it_and_never_above() -> None:
    one_mac_a_filter = Network(((1, 0, "1"),), (100,))
    budget = one_mac_a_filter.budget(0.29)
    assert budget.cost_range == (28, 29)
    assert [kept for kept in range(1, 101) if budget.meets((kept,))] == [28, 29]
    free = one_mac_a_filter.budget(None)
    assert free.cost_range == (0, 100)
    assert all(free.meets((kept,)) for kept in range(1, 101))


@given(st.floats(0.01, 0.99), st.floats(0, 1))
def test_the_distance_is_the_part_of_the_way_to_the_target_that_is_left(target: float, ratio: float) -> None:
    budget = dataclasses.replace(EQUAL_COSTS.budget(None), target=max(target, 0.2))
    distance = budget.distance(ratio)
    assert budget.distance(1.0) == 1
    assert 0 <= distance <= 1
    assert (distance == 0) == (ratio <= max(target, 0.2))
    assert distance <= budget.distance(min(1.0, ratio + 0.1))


@pytest.mark.parametrize("target", [None, 1.0])
def test_there_is_no_distance_without_anything_to_remove(target: float | None) -> None:
    assert EQUAL_COSTS.budget(target).distance(1.0) == 0
    assert EQUAL_COSTS.budget(target).distance(0.3) == 0


# What a rate removes


def test_rate_03_of_64_filters_leaves_45() -> None:
    budget = Network(((1, 0, "1"),), (64,)).budget(None, (0.0, 0.3))
    assert budget.apply((64,), [1]) == (45,)


@pytest.mark.parametrize(
    ("rate", "filters", "removed"),
    [(0.3, 10, 3), (0.29, 100, 29), (0.57, 100, 57), (0.07, 100, 7), (0.15, 20, 3), (0.45, 512, 230), (1 / 3, 9, 3)],
)
def test_removals_are_exact_in_decimals(rate: float, filters: int, removed: int) -> None:
    budget = Network(((1, 0, "1"),), (filters,)).budget(None, (0.0, rate))
    assert budget.removable((filters,)).tolist() == [[0, removed]]


def test_the_rate_is_of_the_remaining_filters() -> None:
    budget = Network(((1, 0, "1"),), (64,)).budget(None, (0.0, 0.3))
    assert budget.apply(budget.apply((64,), [1]), [1]) == (45 - 13,)


def test_removable_has_a_row_for_each_group_and_stops_at_min_filters() -> None:
    removable = BY_HAND.budget(None, (0.0, 0.3, 0.9), min_filters=4).removable((10, 5))
    assert removable.tolist() == [[0, 3, 6], [0, 1, 1]]


@pytest.mark.parametrize(("plan", "kept"), [(64, 48), (48, 40), (16, 16), (8, 8)])
def test_round_to_rounds_the_kept_count_up(plan: int, kept: int) -> None:
    """0.3 of 64 would leave 45; the next multiple of 8 is 48. A count is never rounded above the present one."""
    budget = Network(((1, 0, "1"),), (64,)).budget(None, (0.0, 0.3), round_to=8)
    assert plan - budget.removable((plan,))[0, 1] == kept


def test_a_full_count_that_is_not_a_multiple_is_cut_to_a_multiple() -> None:
    budget = Network(((1, 0, "1"),), (20,)).budget(None, (0.0, 0.1, 0.3), round_to=8)
    assert budget.removable((20,)).tolist() == [[0, 0, 4]]
    assert budget.action_masks((20,)).tolist() == [[1, 0, 1]]


# What is legal


def test_a_rate_that_removes_nothing_is_illegal() -> None:
    masks = BY_HAND.budget(None, (0.0, 0.05, 0.1)).action_masks((10, 19))
    assert masks.tolist() == [[1, 0, 1], [1, 0, 1]]
    assert BY_HAND.budget(None, (0.0, 0.05, 0.1)).action_masks((9, 9)).tolist() == [[1, 0, 0], [1, 0, 0]]


def test_a_rate_that_min_filters_would_limit_is_illegal() -> None:
    masks = BY_HAND.budget(None, (0.0, 0.3, 0.4), min_filters=7).action_masks((10, 8))
    assert masks.tolist() == [[1, 1, 0], [1, 0, 0]]


def test_two_rates_that_remove_the_same_number_are_both_legal() -> None:
    assert BY_HAND.budget(None, (0.0, 0.1, 0.15)).action_masks((10, 10)).tolist() == [[1, 1, 1], [1, 1, 1]]


def test_a_rate_that_overshoots_on_its_own_is_illegal() -> None:
    """55 of 110 MACs may stay: 5 filters of group 0 cost 50, 6 cost 60; group 1 costs 10 in all."""
    masks = BY_HAND.budget(0.5, (0.0, 0.5, 0.6, 0.9)).action_masks((10, 10))
    assert masks.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]


@pytest.mark.parametrize(("target", "legal"), [(60 / 110, 1), (61 / 110, 0)])
def test_a_rate_that_lands_exactly_on_the_target_is_legal(target: float, legal: int) -> None:
    """Without half of group 0, 60 of 110 MACs are left."""
    assert BY_HAND.budget(target, (0.0, 0.5)).action_masks((10, 10)).tolist() == [[1, legal], [1, 1]]


def test_action_masks_are_int8() -> None:
    masks = VGG16.budget().action_masks(VGG16.full)
    assert masks.dtype == np.int8
    assert masks.shape == (13, len(RATES))


@given(networks(2, 96, (1, 6)), st.data(), st.sampled_from((None, 0.6)), st.integers(1, 3), st.sampled_from((1, 4)))
@settings(max_examples=60, deadline=None)
def test_masks_are_1_exactly_where_a_rate_is_legal(
    network: Network, data: st.DataObject, target: float | None, min_filters: int, round_to: int
) -> None:
    try:
        budget = network.budget(target, min_filters=min_filters, round_to=round_to)
    except ValueError:
        return  # the target is out of reach, which another test covers
    fewest = [min(full, math.ceil(min_filters / round_to) * round_to) for full in network.full]
    plan = tuple(
        data.draw(st.sampled_from([full, *range(low, full, round_to)]))
        for low, full in zip(fewest, network.full, strict=True)
    )
    masks = budget.action_masks(plan)
    for group, action in itertools.product(range(len(plan)), range(len(RATES))):
        left = plan[group] - math.floor(Fraction(str(RATES[action])) * plan[group])
        kept = min(plan[group], math.ceil(left / round_to) * round_to)
        alone = (*plan[:group], kept, *plan[group + 1 :])
        one_more = (int(network.macs(np.array(alone))) + 1) / int(network.macs(np.array(network.full)))
        overshoots = target is not None and one_more <= target  # MACs are integers: nothing lies in between
        legal = action == 0 or (fewest[group] <= kept < plan[group] and not overshoots)
        assert masks[group, action] == legal
        if legal:  # on its own, a legal action has exactly its effect, even after projection
            actions = [action if index == group else 0 for index in range(len(plan))]
            assert budget.project(plan, budget.apply(plan, actions), last=False) == alone


@pytest.mark.parametrize(("action", "nearest"), [(0, 0), (1, 1), (2, 1), (3, 3), (4, 3)])
def test_nearest_legal_is_at_or_below_the_action(action: int, nearest: int) -> None:
    masks = np.array([[1, 1, 0, 1, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]], np.int8)
    assert Budget.nearest_legal(masks, [action] * 3).tolist() == [nearest, 0, action]


@pytest.mark.parametrize("action", [-1, 3])
def test_nearest_legal_refuses_actions_outside_the_rates(action: int) -> None:
    with pytest.raises(ValueError, match=f"action {action} .*3 rates"):
        Budget.nearest_legal(np.ones((2, 3), np.int8), [0, action])


def test_apply_replaces_an_illegal_action_by_the_nearest_legal_one_below() -> None:
    budget = BY_HAND.budget(None, (0.0, 0.3, 0.4), min_filters=7)
    assert budget.apply((10, 8), [2, 2]) == (7, 8)


def test_the_order_of_agents_does_not_matter() -> None:
    """Without a budget, acting one after another in any order gives the same plan as acting at once."""
    network = chain((64, 32, 48), (8, 8, 4))
    budget, actions = network.budget(None), [6, 3, 9]
    for order in itertools.permutations(range(3)):
        plan = network.full
        for group in order:
            plan = budget.apply(plan, [action if index == group else 0 for index, action in enumerate(actions)])
        assert plan == budget.apply(network.full, actions)


# Wrong arguments, and immutability


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"full_plan": ()}, "full_plan"),
        ({"full_plan": (10, 0)}, r"full_plan .*\(10, 0\)"),
        ({"rates": ()}, "rates"),
        ({"rates": (0.1, 0.2)}, r"rates .*\(0.1, 0.2\)"),
        ({"rates": (0.0, 0.3, 0.2)}, r"rates .*\(0.0, 0.3, 0.2\)"),
        ({"rates": (0.0, 0.3, 0.3)}, r"rates .*\(0.0, 0.3, 0.3\)"),
        ({"rates": (0.0, 1.0)}, r"rates .*\(0.0, 1.0\)"),
        ({"rates": (0.0, math.nan)}, "rates .*nan"),
        ({"target": 0.0}, "target .*0.0"),
        ({"target": 50}, "target .*50"),
        ({"target": math.nan}, "target .*nan"),
        ({"target": "0.5"}, "target .*'0.5'"),
        ({"target": True}, "target .*True"),
        ({"limits": Limits(min_filters=(1, 2, 3))}, r"min_filters .*\(1, 2, 3\)"),
    ],
)
def test_wrong_fields_are_named(changes: dict[str, object], named: str) -> None:
    fields: dict[str, object] = {"full_plan": (10, 10), "rates": RATES, "target": 0.5, **changes}
    with pytest.raises(ValueError, match=named):
        Budget(BY_HAND.macs, **fields)  # type: ignore[arg-type]


def test_the_error_for_a_target_out_of_reach_names_the_lowest_target() -> None:
    """With 4 of 10 filters in every group, 44 of 110 MACs stay."""
    with pytest.raises(ValueError, match=r"target_macs=0.35 .*min_filters=4.*0.4000"):
        BY_HAND.budget(0.35, min_filters=4)
    assert BY_HAND.budget(0.4, min_filters=4).uniform() == (4, 4)


def test_the_lowest_target_that_an_error_names_is_within_reach() -> None:
    network = chain((13, 17, 19), (8, 8, 4))
    with pytest.raises(ValueError, match=r"target_macs=0\.001") as caught:
        network.budget(0.001, min_filters=3)
    lowest = float(re.findall(r"0\.\d{4}\b", str(caught.value))[-1])
    assert network.budget(lowest, min_filters=3).uniform() == (3, 3, 3)


def test_apply_needs_one_action_per_group() -> None:
    with pytest.raises(ValueError, match=r"2 groups.*1"):
        BY_HAND.budget().apply((10, 10), [0])


def test_a_budget_is_immutable_and_pickles() -> None:
    budget = VGG16.budget(0.5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        budget.target = 0.4  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(budget)).uniform() == budget.uniform()
