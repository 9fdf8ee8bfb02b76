"""What a pruning rate does to a plan, which rates are legal, and how a plan is projected onto the budget.

A plan is a tuple of G integers: the filters kept in each pruning group. Letters: G groups, A rates, M moves.

A budget limits one cost: MACs, parameters or latency. Every finished episode costs the same: at most the target, a
fraction of the original network's cost, and at most one percentage point less. `Budget.project` ensures this by four
rules, in this order:

1. Overshoot. If a plan lies below the target, the round's removals are scaled by the smallest factor s in [0, 1] that
   still reaches the target.
2. Shortfall. If the last round ends above the target, all removals since the original network are scaled by the
   smallest sufficient s >= 1, at most down to the fewest filters that may stay. If that is not enough, every group
   loses the same further fraction.
3. Give back. Rounding to integers leaves a gap below the target. Filters are given back one step at a time while one
   fits, first to the group that has lost the largest part of its removals.
4. Exchange. If more than one percentage point is still missing, filters are exchanged between two groups, or between
   one group and all others, by as few steps as possible.

Where a single step costs several percentage points (`round_to` above 1, networks with few filters), there may be no
plan so close to the target. Then the best plan found lies further below it, and still never above: `meets` returns
False for it, and the environment warns.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from itertools import combinations, pairwise
from math import ceil, floor
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..common.settings import Count, Range, Settings
from ..pruning.limits import ROUNDING, IntArray, Limits
from .costs import UNITS, CostFunction, CostName

Target = Annotated[float, Range(0, 1, above=True)]
"""Fraction of the original network's cost that may stay."""


def check_rates(rates: Sequence[float]) -> None:
    """Check that pruning rates rise from 0 and stay below 1.

    Raises:
        ValueError: They do not, or there is none above 0.
    """
    rising = all(low < high for low, high in pairwise(rates))
    if len(rates) < 2 or rates[0] != 0 or not rising or rates[-1] >= 1:
        raise ValueError(
            f"rates must rise from 0.0 (remove nothing) and stay below 1, at least two of them; got {tuple(rates)}: "
            "sort them, put 0.0 first and drop repeats"
        )


def cost_range(target: float, full_cost: int) -> tuple[int, int]:
    """Return the lowest and the highest cost that meet a target: within the tolerance below it, and never above.

    The target counts as the decimal that is written: 0.29 of 100 MACs are 29, although 0.29 * 100 < 29 in binary.
    """
    exact = Fraction(str(float(target)))
    most = floor(exact * full_cost)
    most += (most + 1) / full_cost <= target  # 1/3 is no finite decimal
    return ceil((exact - Fraction(str(Budget.tolerance))) * full_cost), most


@dataclass(frozen=True, eq=False)
class Budget(Settings):
    """The rules of pruning rates and of the target for one network. Immutable and deterministic.

    Raises:
        ValueError: A field has a value that is not allowed, or the target is out of reach; the message names the field,
            or the lowest fraction within reach.
    """

    cost: CostFunction = field(repr=False)
    """Costs of plans."""
    full_plan: tuple[Count, ...]
    """Filters of the original groups, [G]."""
    rates: tuple[float, ...]
    """Pruning rates, [A]: the fraction of a group's remaining filters that is removed. rates[0] is 0."""
    target: Target | None
    """Fraction of the original cost that may stay, in (0, 1]; None for no budget."""
    limits: Limits = field(default_factory=Limits)
    """What must stay of each group."""
    cost_name: CostName = "macs"
    """What `cost` counts."""

    tolerance: ClassVar[float] = 0.01
    """How far below the target a finished plan may lie, as a fraction of the original cost."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "rates", tuple(map(float, self.rates)))
        if not self.full_plan:
            raise ValueError("full_plan must have at least one group, got none")
        check_rates(self.rates)
        self.limits.check_groups(len(self.full_plan))
        if self.target is None:
            return
        lowest = int(self.cost(self.fewest))
        if lowest > self._most:
            fraction = ceil(Fraction(10_000 * lowest, self.full_cost)) / 10_000  # rounded up, so that it is in reach
            raise ValueError(
                f"{self} is out of reach: with {self.limits} at least {fraction:.4f} of the {self.unit} stay. Raise "
                f"target_{self.cost_name} to that or more, lower min_filters or round_to, raise max_rate, or exclude "
                "fewer layers"
            )

    def __str__(self) -> str:
        return f"target_{self.cost_name}={self.target}"

    @property
    def unit(self) -> str:
        """What `cost` counts, as a word for messages."""
        return UNITS[self.cost_name]

    def with_target(self, target: float | None) -> Budget:
        """Return the same rules with another target.

        Raises:
            ValueError: The target is no fraction in (0, 1], or out of reach.
        """
        return replace(self, target=target)

    @cached_property
    def cost_range(self) -> tuple[int, int]:
        """The lowest and the highest cost of a finished plan; from 0 to that of the original without a budget."""
        return (0, self.full_cost) if self.target is None else cost_range(self.target, self.full_cost)

    def ratio(self, plan: Sequence[int]) -> float:
        """Return the cost of a plan as a fraction of the original network's."""
        return int(self.cost(np.asarray(plan, np.int64))) / self.full_cost

    def meets(self, plan: Sequence[int]) -> bool:
        """Return whether a plan's cost is at most the target, and below it by no more than the tolerance."""
        least, most = self.cost_range
        return least <= int(self.cost(np.asarray(plan, np.int64))) <= most

    def check_finished(self, plan: Sequence[int]) -> None:
        """Check that an episode may end with a plan: it keeps what must stay, and costs at most the target.

        Raises:
            ValueError: It does not.
        """
        if (np.asarray(plan, np.int64) < self.fewest).any():
            raise ValueError(f"plan {tuple(plan)} keeps fewer filters than must stay, {tuple(self.fewest.tolist())}")
        if int(self.cost(np.asarray(plan, np.int64))) > self._most:
            raise ValueError(
                f"plan {tuple(plan)} keeps {self.ratio(plan):.4f} of the {self.unit}, more than {self}; project it "
                "with env.budget.project, or raise the target"
            )

    def ratios_around_target(self) -> tuple[float, float]:
        """Return the cost of the uniform plan and of the cheapest plan above the target that is one step larger.

        Returns:
            Two fractions of the original cost: at most the target, and above it (1 if there is none).
        """
        plan = np.array(self.uniform(), np.int64)
        up = np.minimum(self.limits.rounded_up(plan + 1), self._full) - plan  # [G]
        larger = self.cost(plan + np.diag(up))
        above = larger[larger > self._most].min(initial=self.full_cost)
        return int(self.cost(plan)) / self.full_cost, int(above) / self.full_cost

    def distance(self, ratio: float) -> float:
        """Return the part of the way to the target that is left, 1 for the original network; 0 without a budget."""
        if self.target is None or self.target == 1:
            return 0.0
        return max(0.0, (ratio - self.target) / (1 - self.target))

    def removable(self, plan: Sequence[int]) -> IntArray:
        """Return how many filters each rate removes from each group, at most down to the fewest that may stay: [G, A].

        With `round_to` 1 that is floor(rate * remaining): of 64 filters, 0.3 removes 19 and leaves 45.
        """
        now = np.asarray(plan, np.int64)[:, None]
        return now - np.maximum(self._kept_by_rate(plan), np.minimum(now, self.fewest[:, None]))

    def action_masks(self, plan: Sequence[int]) -> NDArray[np.int8]:
        """Return 1 where a rate is legal, int8 [G, A]. Action 0 is always legal.

        Any other rate must remove something, must not be limited by `limits`, and must not take the plan below the
        target on its own. A legal action therefore removes exactly what its rate says. Two rates may remove the same
        number of filters.
        """
        now = np.asarray(plan, np.int64)
        kept = self._kept_by_rate(plan)  # [G, A]
        legal = (kept < now[:, None]) & (kept >= self.fewest[:, None])
        if self.target is not None:
            groups, rates = np.nonzero(legal)
            alone = np.repeat(now[None], len(groups), 0)  # [legal pairs, G]
            alone[np.arange(len(groups)), groups] = kept[groups, rates]
            legal[groups, rates] = self.cost(alone) >= self._most
        legal[:, 0] = True
        return legal.astype(np.int8)

    @staticmethod
    def nearest_legal(masks: NDArray[np.int8], actions: Sequence[int]) -> IntArray:
        """Return the nearest legal action at or below each of `actions` [G], given the masks [G, A]: [G].

        Raises:
            ValueError: An action lies outside [0, A).
        """
        wanted, rates = np.asarray(actions), np.arange(masks.shape[1])
        if (outside := (wanted < 0) | (wanted >= len(rates))).any():
            raise ValueError(
                f"action {wanted[outside][0]} is not legal; it must be an index into the {len(rates)} rates"
            )
        return np.where(masks.astype(bool) & (rates <= wanted[:, None]), rates, 0).max(1)

    def apply(
        self, plan: Sequence[int], actions: Sequence[int], masks: NDArray[np.int8] | None = None
    ) -> tuple[int, ...]:
        """Return the plan after every group's action, before projection.

        Args:
            plan: The plan before the round, [G].
            actions: One action per group, [G]. An illegal one counts as the nearest legal one below.
            masks: The action masks of the plan, if they are known already.

        Raises:
            ValueError: There is not one action per group, or an action lies outside [0, A).
        """
        if len(actions) != len(self.full_plan):
            raise ValueError(f"expected one action for each of the {len(self.full_plan)} groups, got {len(actions)}")
        legal = self.nearest_legal(self.action_masks(plan) if masks is None else masks, actions)  # [G]
        left = np.asarray(plan, np.int64) - self.removable(plan)[np.arange(len(legal)), legal]
        return tuple(left.tolist())

    def project(self, previous: Sequence[int], wanted: Sequence[int], last: bool) -> tuple[int, ...]:
        """Return the plan that a round ends with: `wanted`, projected onto the budget by the rules of this module.

        Without a budget, and in an early round that does not overshoot, the result is `wanted`. No group ends with more
        filters than in `previous`.

        Args:
            previous: The plan before the round, [G].
            wanted: The plan after every group's action, [G].
            last: Whether it is the last round of the episode, which must end at or below the target.

        Raises:
            ValueError: `wanted` adds filters to a group or keeps fewer than its limits allow.
        """
        before, after = np.array(previous, np.int64), np.array(wanted, np.int64)
        if before.shape != self._full.shape or after.shape != before.shape:
            raise ValueError(f"plans must have {len(self._full)} groups, got {len(before)} and {len(after)}")
        if (after > before).any() or (before > self._full).any() or (after < self.fewest).any():
            raise ValueError(
                f"wanted must lie between the fewest filters {tuple(self.fewest.tolist())} and previous "
                f"{tuple(before.tolist())} in every group, got {tuple(after.tolist())}; filters never come back"
            )
        cost = int(self.cost(after))
        if self.target is None or cost == self._most or (cost > self._most and not last):
            return tuple(after.tolist())
        if cost < self._most:
            return self._fit(before, before - after, before, before)
        start, removals, most = self._full, self._full - after, after
        scaled = self._scale(start, removals, most)
        if int(self.cost(scaled)) > self._most:
            start, removals, most = scaled, scaled, scaled
        return self._fit(start, removals, most, before)

    def kept(self, group: int, ratio: float) -> int:
        """Return how many filters a group keeps for a keep ratio, rounded up as for rates."""
        full = self.full_plan[group]
        wanted, multiple = ceil(ratio * full - ROUNDING), int(self.multiples[group])
        return int(np.clip(-(-wanted // multiple) * multiple, self.fewest[group], full))

    def most_kept(self, plan: Sequence[int], group: int) -> int:
        """Return the most filters that a group may keep if all later groups keep their minimum.

        This is the bound of AMC (He et al. 2018, arXiv:1802.03494, algorithm 1), whose agent decides layer by layer.

        Raises:
            ValueError: The groups before this one keep so much that the target is out of reach.
        """
        full, fewest = self.full_plan[group], int(self.fewest[group])
        if self.target is None:
            return full
        counts = np.append(np.arange(fewest, full, self.multiples[group]), full)  # [K]
        plans = np.repeat(np.asarray(plan, np.int64)[None], len(counts), 0)  # [K, G]
        plans[:, group], plans[:, group + 1 :] = counts, self.fewest[group + 1 :]
        fits = self.cost(plans) <= self._most
        if not fits.any():
            raise ValueError(f"with {tuple(plan[:group])} in the groups before {group} the target is out of reach")
        return int(counts[fits].max())

    def uniform(self, target: float | None = None) -> tuple[int, ...]:
        """Return the baseline plan: every group loses the same fraction, the smallest that meets the target.

        Args:
            target: Another target than the budget's own.

        Raises:
            ValueError: There is no target, or it is out of reach.
        """
        if target is not None and target != self.target:
            return self.with_target(target).uniform()
        if self.target is None:
            raise ValueError("a uniform plan needs a target; this budget has none, so pass one in (0, 1]")
        return self._fit(self._full, self._full, self._full, self._full)

    @cached_property
    def _full(self) -> IntArray:
        return np.array(self.full_plan, np.int64)

    @cached_property
    def full_cost(self) -> int:
        return int(self.cost(self._full))

    @cached_property
    def fewest(self) -> IntArray:
        """Filters that every plan keeps at least, [G]."""
        return self.limits.fewest(self.full_plan)

    @cached_property
    def multiples(self) -> IntArray:
        """The number whose multiples each group may keep, [G]."""
        return np.broadcast_to(np.array(self.limits.round_to, np.int64), self._full.shape)

    @property
    def _enough(self) -> int:
        return self.cost_range[0]

    @property
    def _most(self) -> int:
        return self.cost_range[1]

    def _kept_by_rate(self, plan: Sequence[int]) -> IntArray:
        """Return how many filters each rate keeps if the fewest that may stay are ignored: [G, A]."""
        now = np.asarray(plan, np.int64)
        removed = np.floor(np.array(self.rates)[:, None] * now + ROUNDING).astype(np.int64)  # [A, G]
        return np.minimum(now, self.limits.rounded_up(now - removed)).T

    def _fit(self, start: IntArray, removals: IntArray, most: IntArray, ceiling: IntArray) -> tuple[int, ...]:
        """Apply the rules 1 to 4 to a start plan. Rules 1 to 3 stay at or below `most`, rule 4 at or below
        `ceiling`."""
        plan = self._scale(start, removals, most)
        plan = self._give_back(plan, start, removals, most)
        return tuple(self._exchange(plan, ceiling).tolist())

    def _scale(self, start: IntArray, removals: IntArray, most: IntArray) -> IntArray:
        """Return start - floor(s * removals) within its bounds, for the smallest s that meets the target, else the
        largest."""
        moves = np.flatnonzero(removals)
        if not len(moves):
            return np.minimum(start, most)
        # The plan changes only at these factors, so bisecting them is exact.
        steps = [np.arange(start[group] - self.fewest[group] + 1) / removals[group] for group in moves]
        factors = np.unique(np.concatenate(steps))

        def scaled(factor: float) -> IntArray:
            kept = self.limits.rounded_up(start - np.floor(factor * removals + ROUNDING).astype(np.int64))
            return np.minimum(np.maximum(kept, self.fewest), most)

        found = bisect_left(factors, True, key=lambda factor: bool(self.cost(scaled(factor)) <= self._most))
        return scaled(factors[min(found, len(factors) - 1)])

    def _give_back(self, plan: IntArray, start: IntArray, removals: IntArray, most: IntArray) -> IntArray:
        """Add single steps while one fits, each to the group that has lost the largest part of its removals."""
        while True:
            up = np.minimum(self.limits.rounded_up(plan + 1), most) - plan  # [G]
            fits = (up > 0) & (self.cost(plan + np.diag(up)) <= self._most)
            if not fits.any():
                return plan
            lost = np.where(fits, (start - plan) / np.maximum(removals, 1), -np.inf)
            group = int(np.argmax(lost))
            plan[group] += up[group]

    def _exchange(self, plan: IntArray, ceiling: IntArray) -> IntArray:
        """Exchange filters between groups, by as few steps as possible, until the plan is within the tolerance."""
        for reach in (1, 2, 4, 8, 16):
            if self.cost(plan) >= self._enough:
                break
            plan = self._exchange_pairs(plan, ceiling, reach)
            plan = self._exchange_with_all(plan, ceiling, reach)
        return plan

    def _exchange_pairs(self, plan: IntArray, ceiling: IntArray, reach: int) -> IntArray:
        """Climb by the best change of two groups at a time. Small networks need such combinations."""
        highest_cost = int(self.cost(plan))
        lowest, highest = self.limits.steps(self.fewest), self.limits.steps(ceiling)
        moves = np.stack(np.meshgrid(*2 * [np.arange(-reach, reach + 1)]), -1).reshape(-1, 2)  # [M, 2]
        improved = True
        while improved and highest_cost < self._enough:
            improved, centre = False, self.limits.steps(plan)
            for pair in combinations(range(len(plan)), 2):
                steps = np.repeat(centre[None], len(moves), 0)  # [M, G]
                steps[:, pair] += moves
                plans = np.minimum(np.clip(steps, lowest, highest) * self.multiples, ceiling)
                costs = self.cost(plans)
                best = int(np.argmax(np.where(costs <= self._most, costs, -1)))
                if highest_cost < costs[best] <= self._most:
                    plan, highest_cost, improved = plans[best], int(costs[best]), True
        return plan

    def _exchange_with_all(self, plan: IntArray, ceiling: IntArray, reach: int) -> IntArray:
        """Add steps to one group and remove the same fraction from all others. Groups that span many layers need
        this."""
        highest_cost = int(self.cost(plan))
        for group in range(len(plan)):
            if highest_cost >= self._enough:
                break
            start, others = plan.copy(), plan.copy()
            start[group] = min((self.limits.steps(plan)[group] + reach) * self.multiples[group], ceiling[group])
            others[group] = 0
            candidate = self._give_back(self._scale(start, others, start), start, others, start)
            if highest_cost < (cost := int(self.cost(candidate))) <= self._most:
                plan, highest_cost = candidate, cost
        return plan
