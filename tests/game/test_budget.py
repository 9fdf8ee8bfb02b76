"""Budget: legal rates mean what they say, and every finished plan costs the same.

The costs here are small fakes of the real one: MACs of layer l are coefficient_l * in_l(plan) * out_l(plan).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prune_env.game.budget import Budget, IntArray

RATES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45)


@dataclasses.dataclass(frozen=True)
class Network:
    """Layers as (coefficient, input group, output group); a group is an index, or a fixed count as a string."""

    layers: tuple[tuple[int, int | str, int | str], ...]
    full: tuple[int, ...]

    def macs(self, plans: IntArray) -> IntArray:
        plans = np.asarray(plans, np.int64)

        def channels(side: int | str) -> IntArray | int:
            return int(side) if isinstance(side, str) else plans[..., side]

        costs = [coefficient * channels(ins) * channels(outs) for coefficient, ins, outs in self.layers]
        return np.asarray(sum(costs), np.int64)

    def ratio(self, plan: tuple[int, ...]) -> float:
        return int(self.macs(np.array(plan))) / int(self.macs(np.array(self.full)))

    def budget(self, target: float | None = 0.5, rates: tuple[float, ...] = RATES, **limits: int) -> Budget:
        return Budget(self.macs, self.full, rates, target, **limits)


def chain(full: tuple[int, ...], maps: tuple[int, ...]) -> Network:
    """A plain network: 3 channels in, 3x3 convolutions on maps of these sizes, 10 classes out."""
    sides: list[int | str] = ["3", *range(len(full))]
    layers = [(9 * size**2, sides[index], index) for index, size in enumerate(maps)]
    return Network((*layers, (1, len(full) - 1, "10")), full)


def residual(full: tuple[int, ...], maps: tuple[int, ...]) -> Network:
    """Group 0 is the stream that all additions share; every other group is inside a block of its own."""
    layers: list[tuple[int, int | str, int | str]] = [(9 * max(maps) ** 2, "3", 0), (1, 0, "10")]
    for inner, size in enumerate(maps[1:], 1):
        layers += [(9 * size**2, 0, inner), (9 * size**2, inner, 0)]
    return Network(tuple(layers), full)


VGG16 = chain(
    (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512), (32, 32, 16, 16, 8, 8, 8, 4, 4, 4, 2, 2, 2)
)
# 10 a + b: small enough to work the rule out by hand; 110 MACs.
BY_HAND = Network(((10, 0, "1"), (1, 1, "1")), (10, 10))
EQUAL_COSTS = Network(((1, 0, "1"), (1, 1, "1")), (10, 10))


@st.composite
def networks(draw: st.DrawFn, fewest: int = 24, most: int = 96, groups: tuple[int, int] = (5, 10)) -> Network:
    count = draw(st.integers(*groups))
    full = draw(st.lists(st.integers(fewest, most), min_size=count, max_size=count).map(tuple))
    maps = draw(st.lists(st.sampled_from((4, 8, 16)), min_size=count, max_size=count).map(tuple))
    return draw(st.sampled_from((chain, residual)))(full, maps)


def episode(budget: Budget, actions: list[list[int]]) -> list[tuple[int, ...]]:
    """The plans of an episode, the full one first."""
    plans = [budget.full_plan]
    for number, row in enumerate(actions, 1):
        wanted = budget.apply(plans[-1], row[: len(budget.full_plan)])
        plans.append(budget.project(plans[-1], wanted, last=number == len(actions)))
    return plans


episodes_of_actions = st.lists(
    st.lists(st.integers(0, len(RATES) - 1), min_size=10, max_size=10), min_size=1, max_size=4
)
# Cautious, bold and mixed teams: uniform actions alone would nearly always overshoot.
few_removals = st.lists(st.lists(st.sampled_from((0, 0, 0, 1, 2)), min_size=10, max_size=10), min_size=1, max_size=4)


# What a rate does


def test_64_filters_at_rate_03_leave_45() -> None:
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
    """0.3 of 64 would leave 45; the next multiple of 8 is 48. A count is never rounded up above what is there."""
    budget = Network(((1, 0, "1"),), (64,)).budget(None, (0.0, 0.3), round_to=8)
    assert plan - budget.removable((plan,))[0, 1] == kept


def test_a_full_count_that_is_no_multiple_goes_down_to_a_multiple() -> None:
    budget = Network(((1, 0, "1"),), (20,)).budget(None, (0.0, 0.1, 0.3), round_to=8)
    assert budget.removable((20,)).tolist() == [[0, 0, 4]]
    assert budget.action_masks((20,)).tolist() == [[1, 0, 1]]


# What is legal


def test_a_rate_that_removes_nothing_is_illegal() -> None:
    masks = BY_HAND.budget(None, (0.0, 0.05, 0.1)).action_masks((10, 19))
    assert masks.tolist() == [[1, 0, 1], [1, 0, 1]]
    assert BY_HAND.budget(None, (0.0, 0.05, 0.1)).action_masks((9, 9)).tolist() == [[1, 0, 0], [1, 0, 0]]


def test_a_rate_that_min_filters_would_cut_short_is_illegal() -> None:
    masks = BY_HAND.budget(None, (0.0, 0.3, 0.4), min_filters=7).action_masks((10, 8))
    assert masks.tolist() == [[1, 1, 0], [1, 0, 0]]


def test_rates_with_equal_removals_are_both_legal() -> None:
    assert BY_HAND.budget(None, (0.0, 0.1, 0.15)).action_masks((10, 10)).tolist() == [[1, 1, 1], [1, 1, 1]]


def test_a_rate_that_overshoots_alone_is_illegal() -> None:
    """Of 110 MACs 55 may stay: 5 filters of group 0 take 50, 6 take 60; group 1 has 10 in all."""
    masks = BY_HAND.budget(0.5, (0.0, 0.5, 0.6, 0.9)).action_masks((10, 10))
    assert masks.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]


@pytest.mark.parametrize(("target", "legal"), [(60 / 110, 1), (61 / 110, 0)])
def test_a_rate_that_lands_exactly_on_the_target_is_legal(target: float, legal: int) -> None:
    """Without half of group 0 there are 60 of 110 MACs."""
    assert BY_HAND.budget(target, (0.0, 0.5)).action_masks((10, 10)).tolist() == [[1, legal], [1, 1]]


def test_action_masks_are_int8() -> None:
    masks = VGG16.budget().action_masks(VGG16.full)
    assert masks.dtype == np.int8
    assert masks.shape == (13, len(RATES))


@given(networks(2, 96, (1, 6)), st.data(), st.sampled_from((None, 0.6)), st.integers(1, 3), st.sampled_from((1, 4)))
@settings(max_examples=60, deadline=None)
def test_masks_say_exactly_what_is_legal(
    network: Network, data: st.DataObject, target: float | None, min_filters: int, round_to: int
) -> None:
    try:
        budget = network.budget(target, min_filters=min_filters, round_to=round_to)
    except ValueError:
        return  # the target is out of reach, and there is a test of that
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
        if legal:  # a legal action alone has exactly its effect, projection included
            actions = [action if index == group else 0 for index in range(len(plan))]
            assert budget.project(plan, budget.apply(plan, actions), last=False) == alone


@pytest.mark.parametrize(("action", "nearest"), [(0, 0), (1, 1), (2, 1), (3, 3), (4, 3)])
def test_nearest_legal_looks_down(action: int, nearest: int) -> None:
    masks = np.array([[1, 1, 0, 1, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]], np.int8)
    assert Budget.nearest_legal(masks, [action] * 3).tolist() == [nearest, 0, action]


@pytest.mark.parametrize("action", [-1, 3])
def test_nearest_legal_refuses_what_is_no_action(action: int) -> None:
    with pytest.raises(ValueError, match=f"action {action} .* index into the 3 rates"):
        Budget.nearest_legal(np.ones((2, 3), np.int8), [0, action])


def test_apply_takes_an_illegal_action_as_the_nearest_legal_one_below() -> None:
    budget = BY_HAND.budget(None, (0.0, 0.3, 0.4), min_filters=7)
    assert budget.apply((10, 8), [2, 2]) == (7, 8)


def test_the_order_of_agents_does_not_matter() -> None:
    """Without a budget, one after the other in any order gives what all at once give."""
    network = chain((64, 32, 48), (8, 8, 4))
    budget, actions = network.budget(None), [6, 3, 9]
    for order in itertools.permutations(range(3)):
        plan = network.full
        for group in order:
            plan = budget.apply(plan, [action if index == group else 0 for index, action in enumerate(actions)])
        assert plan == budget.apply(network.full, actions)


# Projection, worked out by hand on 10 a + b


def project(target: float, previous: tuple[int, int], wanted: tuple[int, int], last: bool) -> tuple[int, ...]:
    return BY_HAND.budget(target).project(previous, wanted, last)


@pytest.mark.parametrize("last", [False, True])
def test_overshoot_scales_the_rounds_removals(last: bool) -> None:
    """11 (10 - k) <= 55 from k = 5 on."""
    assert project(0.5, (10, 10), (2, 2), last) == (5, 5)


def test_overshoot_keeps_the_proportions_of_the_removals() -> None:
    """Equal costs, 13 of 20 may stay, removals (8, 4): 5/8 of them are 5 and 2, the first that are enough."""
    assert EQUAL_COSTS.budget(13 / 20).project((10, 10), (2, 6), last=False) == (5, 8)


def test_overshoot_scales_from_the_previous_plan() -> None:
    """The round's removals are (4, 4), though (8, 4) are gone since the start."""
    assert EQUAL_COSTS.budget(12 / 20).project((6, 10), (2, 6), last=False) == (4, 8)


def test_a_gap_below_the_target_is_filled_with_the_filters_that_fit() -> None:
    """49 MACs may stay; (4, 4) has 44, another filter of group 0 has 54, five of group 1 fit."""
    assert project(0.45, (10, 10), (2, 2), last=False) == (4, 9)


def test_filters_are_given_back_first_where_most_of_the_removal_is_gone() -> None:
    """Equal costs, removals (8, 4), limit 14: at 4/8 (6, 8) fits. One more may stay where limit is 15."""
    assert EQUAL_COSTS.budget(14 / 20).project((10, 10), (2, 6), last=False) == (6, 8)
    assert EQUAL_COSTS.budget(15 / 20).project((10, 10), (2, 6), last=False) == (7, 8)


def test_an_early_round_above_the_target_is_left_alone() -> None:
    assert project(0.5, (10, 10), (8, 10), last=False) == (8, 10)


def test_a_last_round_that_falls_short_scales_all_removals_since_the_start() -> None:
    """The round's removals are (0, 2), but (6, 2) are gone since the start: 8/6 of that."""
    assert EQUAL_COSTS.budget(10 / 20).project((4, 10), (4, 8), last=True) == (2, 8)


def test_falling_short_with_nothing_removed_prunes_uniformly() -> None:
    assert project(0.5, (10, 10), (10, 10), last=True) == (5, 5)


def test_falling_short_at_min_filters_prunes_the_others_uniformly() -> None:
    """16 MACs may stay: group 0 is down to 1 filter, so group 1 goes to 6."""
    assert project(0.15, (10, 10), (9, 10), last=True) == (1, 6)


def test_a_gap_of_more_than_one_point_is_closed_by_an_exchange() -> None:
    """Only group 0 was pruned: (4, 10) has 50 MACs, 4.5 points too few. One up in 0, five down in 1."""
    assert project(0.5, (10, 10), (8, 10), last=True) == (5, 5)


def test_an_exchange_between_two_groups_finds_what_one_against_all_does_not() -> None:
    network = chain((8, 10, 12), (8, 4, 8))
    assert_finished(network, 0.65, network.budget(0.65).uniform())


def test_an_exact_hit_early_leaves_only_action_0() -> None:
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
    """Against every plan that there is."""
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


def test_uniform_needs_a_target() -> None:
    with pytest.raises(ValueError, match="target_macs"):
        VGG16.budget(None).uniform()


def test_vgg16_has_the_macs_of_the_books() -> None:
    """So the fake is a fair stand-in for the real cost."""
    assert VGG16.macs(np.array(VGG16.full)) == 313_201_664


# Bad input, and what a value object owes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"full_plan": ()}, "full_plan .*at least one group"),
        ({"full_plan": (10, 0)}, r"full_plan .*\(10, 0\)"),
        ({"rates": ()}, "rates must rise from 0.0"),
        ({"rates": (0.1, 0.2)}, r"rates must rise from 0.0 .*\(0.1, 0.2\)"),
        ({"rates": (0.0, 0.3, 0.2)}, "rates must rise"),
        ({"rates": (0.0, 0.3, 0.3)}, "rates must rise"),
        ({"rates": (0.0, 1.0)}, "rates must .* below 1"),
        ({"rates": (0.0, math.nan)}, "rates"),
        ({"target_macs": 0.0}, r"target_macs must be a fraction in \(0, 1\].*got 0.0"),
        ({"target_macs": 50}, "target_macs .*got 50.*Half of the MACs are 0.5"),
        ({"target_macs": math.nan}, "target_macs"),
        ({"min_filters": 0}, "min_filters must be at least 1, got 0"),
        ({"round_to": 0}, "round_to must be at least 1, got 0"),
    ],
)
def test_bad_fields_are_named(changes: dict[str, object], message: str) -> None:
    fields: dict[str, object] = {"full_plan": (10, 10), "rates": RATES, "target_macs": 0.5, **changes}
    with pytest.raises(ValueError, match=message):
        Budget(BY_HAND.macs, **fields)  # type: ignore[arg-type]


def test_a_target_out_of_reach_tells_the_lowest_one() -> None:
    """With 4 of 10 filters in every group 44 of 110 MACs stay."""
    with pytest.raises(ValueError, match=r"target_macs=0.35 is out of reach.*min_filters=4.*at least 0.4000"):
        BY_HAND.budget(0.35, min_filters=4)
    assert BY_HAND.budget(0.4, min_filters=4).uniform() == (4, 4)


def test_the_lowest_target_told_is_within_reach() -> None:
    network = chain((13, 17, 19), (8, 8, 4))
    with pytest.raises(ValueError, match="out of reach") as caught:
        network.budget(0.001, min_filters=3)
    told = float(str(caught.value).split("at least ")[1].split()[0])
    assert network.budget(told, min_filters=3).uniform() == (3, 3, 3)


@pytest.mark.parametrize(
    ("previous", "wanted", "message"),
    [
        ((8, 8), (9, 8), "filters never come back"),
        ((8, 8), (8, 1), r"between the fewest filters \(2, 2\)"),
        ((11, 8), (8, 8), "filters never come back"),
        ((8, 8, 8), (8, 8, 8), "2 groups, got 3"),
    ],
)
def test_project_refuses_plans_that_cannot_be(previous: tuple[int, ...], wanted: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BY_HAND.budget(0.5, min_filters=2).project(previous, wanted, last=False)


def test_apply_wants_an_action_for_every_group() -> None:
    with pytest.raises(ValueError, match="one action for each of the 2 groups, got 1"):
        BY_HAND.budget().apply((10, 10), [0])


def test_a_budget_is_immutable_and_pickles() -> None:
    budget = VGG16.budget(0.5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        budget.target_macs = 0.4  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(budget)).uniform() == budget.uniform()


def test_a_shared_group_alone_may_not_strand_the_network_below_the_budget() -> None:
    """Only the stream of the additions was pruned; a filter of it is 4 points, and no pair of groups makes that up."""
    network = residual((24,) * 9, (4,) * 9)
    budget = network.budget(0.15)
    wanted = budget.apply(network.full, [1] + 8 * [0])
    assert_finished(network, 0.15, budget.project(network.full, wanted, last=True))
