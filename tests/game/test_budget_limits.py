"""Limits that differ between groups hold in masks, projection and the uniform plan; the budget is met or refused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layered import BY_HAND, Network, chain, episode, episodes_of_actions, few_removals, networks

from prune_env.game.budget import Budget
from prune_env.pruning.limits import Limits


@st.composite
def limits_of(draw: st.DrawFn, groups: int, round_to: tuple[int, ...] = (1, 2, 4, 8)) -> Limits:
    def numbers(one: st.SearchStrategy) -> tuple:
        return tuple(draw(st.lists(one, min_size=groups, max_size=groups)))

    rates = st.sampled_from((0.0, 0.3, 0.5, 0.75, 1.0, 1.0))
    return Limits(numbers(st.integers(1, 12)), numbers(rates), numbers(st.sampled_from(round_to)))


def limited(network: Network, limits: Limits, target: float | None) -> Budget | None:
    """Return the budget, or None if its target is out of reach, where no plan within the limits meets it."""
    fewest = limits.fewest(network.full)
    if target is not None and network.ratio(tuple(fewest.tolist())) > target:
        with pytest.raises(ValueError, match=f"target_macs={target} .*max_rate"):
            network.budget(target, **vars(limits))
        return None
    return network.budget(target, **vars(limits))


def assert_within(plan: tuple[int, ...], network: Network, limits: Limits) -> None:
    for kept, full, least, most, multiple in zip(
        plan, network.full, limits.min_filters, limits.max_rate, limits.round_to, strict=True
    ):
        assert kept == full or (kept >= least and kept % multiple == 0)
        assert full - kept <= most * full + 1e-6


@given(networks(), st.data(), episodes_of_actions | few_removals, st.integers(30, 95))
@settings(max_examples=80, deadline=None)
def test_every_plan_of_an_episode_is_within_the_limits_and_the_last_meets_the_budget(
    network: Network, data: st.DataObject, actions: list[list[int]], percent: int
) -> None:
    limits, target = data.draw(limits_of(len(network.full))), percent / 100
    if (budget := limited(network, limits, target)) is None:
        return
    plans = episode(budget, actions)
    for plan in (*plans, budget.uniform()):
        assert_within(plan, network, limits)
    for before, after in itertools.pairwise(plans):
        assert all(now <= was for now, was in zip(after, before, strict=True))
    assert network.ratio(plans[-1]) <= target
    assert network.ratio(budget.uniform()) <= target


@given(networks(4, 16, (1, 2)), st.data(), episodes_of_actions | few_removals, st.integers(20, 95))
@settings(max_examples=50, deadline=None)
def test_on_two_groups_the_budget_is_met_whenever_some_plan_within_the_limits_meets_it(
    network: Network, data: st.DataObject, actions: list[list[int]], percent: int
) -> None:
    """Compared with every possible plan."""
    limits, target = data.draw(limits_of(len(network.full))), percent / 100
    if (budget := limited(network, limits, target)) is None:
        return
    fewest = limits.fewest(network.full).tolist()
    counts = [
        sorted({full, *range(least, full, multiple)})
        for least, full, multiple in zip(
            fewest, network.full, np.broadcast_to(limits.round_to, len(fewest)), strict=True
        )
    ]
    if any(map(budget.meets, itertools.product(*counts))):
        assert budget.meets(episode(budget, actions[:1])[-1])


@given(networks(2, 64, (1, 6)), st.data(), st.sampled_from((None, 0.6)))
@settings(max_examples=50, deadline=None)
def test_a_legal_action_does_what_its_rate_says(network: Network, data: st.DataObject, target: float | None) -> None:
    limits = data.draw(limits_of(len(network.full)))
    if (budget := limited(network, limits, target)) is None:
        return
    masks, plan = budget.action_masks(network.full), network.full
    removable = budget.removable(plan)
    for group, action in zip(*np.nonzero(masks), strict=True):
        alone = list(plan)
        alone[group] -= removable[group, action]
        assert (action == 0) == (alone[group] == plan[group])
        assert_within(tuple(alone), network, limits)
        actions = [action if index == group else 0 for index in range(len(plan))]
        assert budget.project(plan, budget.apply(plan, actions), last=False) == tuple(alone)


def test_rules_by_hand() -> None:
    """At most half of group 0 may go, and group 1 keeps multiples of 4: 50 + 4 is the first of 110 MACs below 55."""
    budget = BY_HAND.budget(0.5, rates=(0.0, 0.3, 0.6), max_rate=(0.5, 1.0), round_to=(1, 4))
    assert budget.action_masks((10, 10)).tolist() == [[1, 1, 0], [1, 1, 1]]
    assert budget.removable((10, 10)).tolist() == [[0, 3, 5], [0, 2, 6]]
    assert budget.project((10, 10), (7, 4), last=True) == (5, 4)
    assert budget.uniform() == (5, 4)
    assert [budget.kept(group, 0.1) for group in (0, 1)] == [5, 4]
    assert budget.most_kept((10, 10), 0) == 5
    assert budget.most_kept((5, 10), 1) == 4


def test_a_group_whose_filters_must_all_stay_loses_none() -> None:
    network = chain((16, 16, 16), (8, 8, 8))
    budget = network.budget(0.5, max_rate=(1.0, 0.0, 1.0))
    assert budget.action_masks(network.full)[1].tolist() == [1] + 9 * [0]
    assert budget.uniform()[1] == 16
    assert budget.meets(budget.uniform())


def test_the_error_for_a_target_out_of_reach_names_limits_and_the_lowest_target() -> None:
    with pytest.raises(ValueError, match=r"target_macs=0.4 .*max_rate=\(0.5, 0.4\).*0.5091"):
        BY_HAND.budget(0.4, max_rate=(0.5, 0.4))  # 50 + 6 of 110 MACs stay


@pytest.mark.parametrize("field", ["min_filters", "max_rate", "round_to"])
def test_limits_of_another_number_of_groups_are_named(field: str) -> None:
    with pytest.raises(ValueError, match=rf"{field} .*\(1, 1, 1\)"):
        BY_HAND.budget(0.5, **{field: (1, 1, 1)})
