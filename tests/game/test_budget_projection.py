"""Projection: every finished plan costs the same, and the rules of the projection hold."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layered import (
    BY_HAND,
    EQUAL_COSTS,
    VGG16,
    Network,
    chain,
    episode,
    episodes_of_actions,
    few_removals,
    networks,
    residual,
)

from prune_env.game.budget import Budget

# Projection, applied by hand to 10 a + b


def project(target: float, previous: tuple[int, int], wanted: tuple[int, int], last: bool) -> tuple[int, ...]:
    return BY_HAND.budget(target).project(previous, wanted, last)


@pytest.mark.parametrize("last", [False, True])
def test_overshoot_scales_the_rounds_removals(last: bool) -> None:
    """11 * (10 - k) <= 55 from k = 5 on."""
    assert project(0.5, (10, 10), (2, 2), last) == (5, 5)


def test_overshoot_keeps_the_proportions_of_the_removals() -> None:
    """Equal costs, 13 of 20 may stay, removals (8, 4): 5/8 of them are 5 and 2, the first that are enough."""
    assert EQUAL_COSTS.budget(13 / 20).project((10, 10), (2, 6), last=False) == (5, 8)


def test_overshoot_scales_from_the_previous_plan() -> None:
    """The round removes (4, 4), although (8, 4) are removed since the start."""
    assert EQUAL_COSTS.budget(12 / 20).project((6, 10), (2, 6), last=False) == (4, 8)


def test_a_gap_below_the_target_is_filled_with_the_filters_that_fit() -> None:
    """49 MACs may stay: (4, 4) has 44. One more filter of group 0 gives 54, but five more of group 1 fit."""
    assert project(0.45, (10, 10), (2, 2), last=False) == (4, 9)


def test_filters_are_given_back_first_to_the_group_that_lost_most_of_its_removals() -> None:
    """Equal costs, removals (8, 4): at half of them (6, 8) has 14 MACs. If 15 may stay, one more filter fits."""
    assert EQUAL_COSTS.budget(14 / 20).project((10, 10), (2, 6), last=False) == (6, 8)
    assert EQUAL_COSTS.budget(15 / 20).project((10, 10), (2, 6), last=False) == (7, 8)


def test_an_early_round_above_the_target_is_not_changed() -> None:
    assert project(0.5, (10, 10), (8, 10), last=False) == (8, 10)


def test_a_last_round_above_the_target_scales_all_removals_since_the_start() -> None:
    """The round removes (0, 2), but (6, 2) are removed since the start: they are scaled by 8/6."""
    assert EQUAL_COSTS.budget(10 / 20).project((4, 10), (4, 8), last=True) == (2, 8)


def test_a_last_round_with_nothing_removed_prunes_uniformly() -> None:
    assert project(0.5, (10, 10), (10, 10), last=True) == (5, 5)


def test_a_last_round_with_a_group_at_min_filters_prunes_the_others() -> None:
    """16 MACs may stay: group 0 keeps its last filter, so group 1 is cut to 6."""
    assert project(0.15, (10, 10), (9, 10), last=True) == (1, 6)


def test_a_gap_of_more_than_one_point_is_closed_by_an_exchange() -> None:
    """Only group 0 was pruned: (4, 10) has 50 MACs, 4.5 points too few. Group 0 gets one filter, group 1 loses five."""
    assert project(0.5, (10, 10), (8, 10), last=True) == (5, 5)


def test_an_exchange_between_two_groups_succeeds_where_one_with_all_others_fails() -> None:
    network = chain((8, 10, 12), (8, 4, 8))
    assert_finished(network, 0.65, network.budget(0.65).uniform())


def test_a_plan_exactly_on_the_target_leaves_only_action_0() -> None:
    budget = BY_HAND.budget(0.5)
    plan = budget.project((10, 10), (2, 2), last=False)
    assert budget.action_masks(plan).tolist() == [[1] + 9 * [0]] * 2
    assert budget.project(plan, plan, last=True) == plan


def test_without_a_budget_nothing_is_projected() -> None:
    assert BY_HAND.budget(None).project((10, 10), (1, 1), last=True) == (1, 1)


def test_the_whole_network_may_be_the_budget() -> None:
    budget = VGG16.budget(1.0)
    assert budget.action_masks(VGG16.full).sum() == 13
    assert budget.project(VGG16.full, VGG16.full, last=True) == VGG16.full


# Projection, in general


def assert_finished(network: Network, target: float, plan: tuple[int, ...]) -> None:
    assert target - Budget.tolerance <= network.ratio(plan) <= target


@given(networks(), episodes_of_actions | few_removals, st.integers(15, 95), st.integers(1, 2))
@settings(max_examples=100, deadline=None)
def test_every_episode_meets_the_budget(
    network: Network, actions: list[list[int]], percent: int, min_filters: int
) -> None:
    target = percent / 100
    budget = network.budget(target, min_filters=min_filters)
    plans = episode(budget, actions)
    assert_finished(network, target, plans[-1])
    for before, after in itertools.pairwise(plans):
        assert all(min_filters <= now <= was for now, was in zip(after, before, strict=True))
        assert network.ratio(after) >= target - Budget.tolerance
    assert all(type(count) is int for count in plans[-1])
    assert episode(network.budget(target, min_filters=min_filters), actions) == plans


@given(networks(3, 64, (1, 5)), episodes_of_actions | few_removals, st.integers(40, 95), st.sampled_from((1, 4, 8)))
@settings(max_examples=60, deadline=None)
def test_the_coarsest_network_is_never_above_the_budget(
    network: Network, actions: list[list[int]], percent: int, round_to: int
) -> None:
    try:
        budget = network.budget(percent / 100, round_to=round_to)
    except ValueError:
        return
    plans = episode(budget, actions)
    assert network.ratio(plans[-1]) <= percent / 100
    for before, after in itertools.pairwise(plans):
        assert all(now <= was for now, was in zip(after, before, strict=True))
    for kept, full in zip(plans[-1], network.full, strict=True):
        assert kept == full or kept % round_to == 0


@given(networks(4, 16, (1, 2)), episodes_of_actions | few_removals, st.integers(20, 95))
@settings(max_examples=60, deadline=None)
def test_on_two_groups_the_gap_is_closed_whenever_some_plan_closes_it(
    network: Network, actions: list[list[int]], percent: int
) -> None:
    """Compared with every possible plan."""
    try:
        budget = network.budget(percent / 100)
    except ValueError:
        return
    plan = episode(budget, actions[:1])[-1]
    every = np.array(list(itertools.product(*(range(1, full + 1) for full in network.full))))
    ratios = network.macs(every) / network.macs(np.array(network.full))
    within = (ratios <= percent / 100) & (ratios >= percent / 100 - Budget.tolerance)
    if within.any():
        assert_finished(network, percent / 100, plan)


@pytest.mark.parametrize("target", [0.2, 0.5, 0.8])
def test_a_uniform_plan_keeps_the_same_fraction_of_every_group(target: float) -> None:
    budget = VGG16.budget(target)
    assert_finished(VGG16, target, budget.uniform())
    kept = np.array(budget.uniform()) / VGG16.full
    assert np.ptp(kept) < 1 / 50
    assert VGG16.budget(0.9).uniform(target) == budget.uniform()
    assert VGG16.budget(None).uniform(target) == budget.uniform()


def test_a_uniform_plan_needs_a_target() -> None:
    with pytest.raises(ValueError, match="target"):
        VGG16.budget(None).uniform()


def test_vgg16_has_its_published_macs() -> None:
    """The model of the cost here is therefore realistic."""
    assert VGG16.macs(np.array(VGG16.full)) == 313_201_664


def test_pruning_only_the_shared_group_does_not_leave_the_plan_far_below_the_budget() -> None:
    """A filter of the shared group costs 4 points, and no exchange between two groups closes that gap."""
    network = residual((24,) * 9, (4,) * 9)
    budget = network.budget(0.15)
    wanted = budget.apply(network.full, [1] + 8 * [0])
    assert_finished(network, 0.15, budget.project(network.full, wanted, last=True))


# Wrong arguments


@pytest.mark.parametrize(
    ("previous", "wanted", "named"),
    [
        ((8, 8), (9, 8), r"\(9, 8\)"),
        ((8, 8), (8, 1), r"\(2, 2\).*\(8, 1\)"),
        ((11, 8), (8, 8), r"\(11, 8\)"),
        ((8, 8, 8), (8, 8, 8), "2 groups.*3"),
    ],
)
def test_project_refuses_impossible_plans(previous: tuple[int, ...], wanted: tuple[int, ...], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        BY_HAND.budget(0.5, min_filters=2).project(previous, wanted, last=False)
