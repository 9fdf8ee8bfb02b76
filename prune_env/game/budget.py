"""What a pruning rate does to a plan, which rates are legal, and how a plan is brought onto the MACs budget.

A plan is a tuple of G integers: the filters kept in each pruning group. Letters: G groups, A rates, M moves.

Every finished episode costs the same: at most `target_macs` of the full network's MACs, and no more than one
percentage point less. The rule, in the order in which `Budget.project` applies it:

1. A plan below the target overshoots. The round's removals are scaled by the smallest factor s in [0, 1] that still
   gets the plan down to the target.
2. A last round that stays above the target falls short. All removals since the full network are scaled by the smallest
   sufficient s >= 1, at most down to `min_filters`. If that is not enough, every group loses the same further fraction.
3. Integers leave a gap below the target. Filters are given back one at a time as long as one fits, first where the
   largest part of what was to go is gone.
4. If more than one percentage point is still missing, filters are exchanged, by as few steps as possible: between two
   groups, or between one and all others.

Where a single step costs several percentage points (`round_to` above 1, networks of a few filters) no plan may lie so
close to the target; then the best one found is further below it, and still never above.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from itertools import combinations
from math import ceil, floor
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]

# Far above the rounding error of rate * filters and far below a decimal's step: 0.29 of 100 filters are 29.
_ROUNDING = 1e-9


class MacsFunction(Protocol):
    """MACs of each plan in an integer array [..., G], as an int64 array [...]; more filters never cost less."""

    def __call__(self, plans: IntArray, /) -> IntArray: ...


@dataclass(frozen=True, eq=False)
class Budget:
    """The rules of one pruning problem. Immutable and deterministic.

    macs         the cost of plans
    full_plan    filters of the unpruned groups, [G]
    rates        what an agent chooses from, [A]: the fraction of its group's remaining filters that goes; rates[0] is 0
    target_macs  the fraction of the full network's MACs that may stay, in (0, 1]; None for no budget
    min_filters  filters that stay in every group; all of them where a group has fewer
    round_to     kept counts are rounded up to a multiple of this; a group's full count is always allowed

    Raises ValueError that names the field, or the lowest fraction within reach if the target is below it.
    """

    macs: MacsFunction = field(repr=False)
    full_plan: tuple[int, ...]
    rates: tuple[float, ...]
    target_macs: float | None
    min_filters: int = 1
    round_to: int = 1

    tolerance: ClassVar[float] = 0.01
    """How far below the target, as a fraction of the full network's MACs, a finished plan may lie."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "full_plan", tuple(int(count) for count in self.full_plan))
        object.__setattr__(self, "rates", tuple(float(rate) for rate in self.rates))
        if not self.full_plan or min(self.full_plan) < 1:
            raise ValueError(
                f"full_plan must have at least one group, each of at least 1 filter; got {self.full_plan}. Leave out "
                "groups that have nothing to prune"
            )
        rising = all(low < high for low, high in zip(self.rates, self.rates[1:], strict=False))
        if not self.rates or self.rates[0] != 0 or not rising or self.rates[-1] >= 1:
            raise ValueError(
                f"rates must rise from 0.0 ('leave it alone') and stay below 1, got {self.rates}; sort them, put 0.0 "
                "first and drop repeats"
            )
        for name in ("min_filters", "round_to"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.target_macs is None:
            return
        if not 0 < self.target_macs <= 1:
            raise ValueError(
                f"target_macs must be a fraction in (0, 1], or None for no budget; got {self.target_macs}. "
                "Half of the MACs are 0.5"
            )
        lowest = int(self.macs(self._minimum))
        if lowest > self._limit:
            fraction = ceil(Fraction(10_000 * lowest, self._full_macs)) / 10_000  # rounded up, so that it is in reach
            raise ValueError(
                f"target_macs={self.target_macs} is out of reach: with min_filters={self.min_filters} and "
                f"round_to={self.round_to} at least {fraction:.4f} of the MACs stay. Raise target_macs to that or "
                "more, or lower min_filters or round_to"
            )

    def removable(self, plan: Sequence[int]) -> IntArray:
        """Filters that each rate takes from each group, at most down to the fewest that may stay: [G, A].

        With `round_to` 1 that is floor(rate * remaining): of 64 filters, 0.3 takes 19 and leaves 45.
        """
        now = np.asarray(plan, np.int64)[:, None]
        return now - np.maximum(self._kept_by_rate(plan), np.minimum(now, self._minimum[:, None]))

    def action_masks(self, plan: Sequence[int]) -> NDArray[np.int8]:
        """1 where a rate is legal: [G, A]. Action 0 always is.

        Any other rate must remove something, must not be cut short by `min_filters`, and must not take the plan below
        the target by itself. So a legal action has the effect that its rate says. Two rates may remove the same number.
        """
        now = np.asarray(plan, np.int64)
        kept = self._kept_by_rate(plan)  # [G, A]
        legal = (kept < now[:, None]) & (kept >= self._minimum[:, None])
        if self.target_macs is not None:
            groups, rates = np.nonzero(legal)
            alone = np.repeat(now[None], len(groups), 0)  # [legal pairs, G]
            alone[np.arange(len(groups)), groups] = kept[groups, rates]
            legal[groups, rates] = self.macs(alone) >= self._limit
        legal[:, 0] = True
        return legal.astype(np.int8)

    @staticmethod
    def nearest_legal(masks: NDArray[np.int8], actions: Sequence[int]) -> IntArray:
        """The nearest legal action at or below each of `actions` [G], in the masks [G, A]: [G].

        Raises ValueError for an action outside [0, A).
        """
        wanted, rates = np.asarray(actions), np.arange(masks.shape[1])
        if (outside := (wanted < 0) | (wanted >= len(rates))).any():
            raise ValueError(f"action {wanted[outside][0]} is none; it must be an index into the {len(rates)} rates")
        return np.where(masks.astype(bool) & (rates <= wanted[:, None]), rates, 0).max(1)

    def apply(
        self, plan: Sequence[int], actions: Sequence[int], masks: NDArray[np.int8] | None = None
    ) -> tuple[int, ...]:
        """The plan after every group's action [G], an illegal one taken as its nearest legal one; not yet projected.

        masks  those of the plan, if they are known already
        """
        if len(actions) != len(self.full_plan):
            raise ValueError(f"expected one action for each of the {len(self.full_plan)} groups, got {len(actions)}")
        legal = self.nearest_legal(self.action_masks(plan) if masks is None else masks, actions)  # [G]
        left = np.asarray(plan, np.int64) - self.removable(plan)[np.arange(len(legal)), legal]
        return tuple(left.tolist())

    def project(self, previous: Sequence[int], wanted: Sequence[int], last: bool) -> tuple[int, ...]:
        """The plan that a round ends with: `wanted`, or what the module's rule makes of it.

        Never above `previous` in any group. Without a budget, and in an early round that does not overshoot, it is
        `wanted`. Raises ValueError if `wanted` adds filters, or keeps fewer than `min_filters`.
        """
        before, after = np.array(previous, np.int64), np.array(wanted, np.int64)
        if before.shape != self._full.shape or after.shape != before.shape:
            raise ValueError(f"plans must have {len(self._full)} groups, got {len(before)} and {len(after)}")
        if (after > before).any() or (before > self._full).any() or (after < self._minimum).any():
            raise ValueError(
                f"wanted must lie between the fewest filters {tuple(self._minimum.tolist())} and previous "
                f"{tuple(before.tolist())} in every group, got {tuple(after.tolist())}; filters never come back"
            )
        macs = int(self.macs(after))
        if self.target_macs is None or macs == self._limit or (macs > self._limit and not last):
            return tuple(after.tolist())
        if macs < self._limit:
            return self._fit(before, before - after, before, before)
        start, removals, most = self._full, self._full - after, after
        scaled = self._scale(start, removals, most)
        if int(self.macs(scaled)) > self._limit:
            start, removals, most = scaled, scaled, scaled
        return self._fit(start, removals, most, before)

    def kept(self, group: int, ratio: float) -> int:
        """Filters that stay where a fraction of the group's full count is asked for; rounded up, as for rates."""
        full = self.full_plan[group]
        wanted = self._rounded_up(np.array(ceil(ratio * full - _ROUNDING)))
        return int(np.clip(wanted, self._minimum[group], full))

    def most_kept(self, plan: Sequence[int], group: int) -> int:
        """The most filters of a group that leave the target in reach: all later groups can go down to their fewest.

        The bound of AMC (He et al. 2018, arXiv:1802.03494, algorithm 1), whose agent settles one layer after another.
        Raises ValueError if the groups before have already put the target out of reach.
        """
        full, fewest = self.full_plan[group], int(self._minimum[group])
        if self.target_macs is None:
            return full
        counts = np.append(np.arange(fewest, full, self.round_to), full)  # [K]
        plans = np.repeat(np.asarray(plan, np.int64)[None], len(counts), 0)  # [K, G]
        plans[:, group], plans[:, group + 1 :] = counts, self._minimum[group + 1 :]
        fits = self.macs(plans) <= self._limit
        if not fits.any():
            raise ValueError(f"with {tuple(plan[:group])} in the groups before {group} the target is out of reach")
        return int(counts[fits].max())

    def uniform(self, target_macs: float | None = None) -> tuple[int, ...]:
        """The baseline: every group loses the same fraction, the smallest that meets the target, then corrected.

        Raises ValueError if there is neither this target nor one of the budget's own, or if it is out of reach.
        """
        if target_macs is not None and target_macs != self.target_macs:
            other = Budget(self.macs, self.full_plan, self.rates, target_macs, self.min_filters, self.round_to)
            return other.uniform()
        if self.target_macs is None:
            raise ValueError("a uniform plan needs a target_macs; this budget has none, so pass one in (0, 1]")
        return self._fit(self._full, self._full, self._full, self._full)

    @cached_property
    def _full(self) -> IntArray:
        return np.array(self.full_plan, np.int64)

    @cached_property
    def _full_macs(self) -> int:
        return int(self.macs(self._full))

    @cached_property
    def _minimum(self) -> IntArray:
        return np.minimum(self._full, -(-self.min_filters // self.round_to) * self.round_to)

    @cached_property
    def _limit(self) -> int:
        """The most MACs whose ratio is at most the target."""
        assert self.target_macs is not None
        below = floor(Fraction(self.target_macs) * self._full_macs)
        return below + ((below + 1) / self._full_macs <= self.target_macs)  # 29 / 100 <= 0.29, but 0.29 * 100 < 29

    @cached_property
    def _enough(self) -> int:
        """The fewest MACs that are within the tolerance."""
        return ceil((Fraction(str(self.target_macs)) - Fraction(str(self.tolerance))) * self._full_macs)

    def _kept_by_rate(self, plan: Sequence[int]) -> IntArray:
        """Filters that each rate leaves, whatever `min_filters` says: [G, A]."""
        now = np.asarray(plan, np.int64)[:, None]
        removed = np.floor(np.array(self.rates) * now + _ROUNDING).astype(np.int64)
        return np.minimum(now, self._rounded_up(now - removed))

    def _rounded_up(self, counts: IntArray) -> IntArray:
        return self._steps(counts) * self.round_to

    def _fit(self, start: IntArray, removals: IntArray, most: IntArray, ceiling: IntArray) -> tuple[int, ...]:
        """Rules 1 to 4 from a start plan; 1 to 3 stay at or below `most`, 4 at or below `ceiling`. All [G]."""
        plan = self._scale(start, removals, most)
        plan = self._give_back(plan, start, removals, most)
        return tuple(self._exchange(plan, ceiling).tolist())

    def _scale(self, start: IntArray, removals: IntArray, most: IntArray) -> IntArray:
        """start - floor(s * removals) within its bounds, for the smallest s that meets the target, else the largest."""
        moves = np.flatnonzero(removals)
        if not len(moves):
            return np.minimum(start, most)
        # The plan changes only at these factors, so bisecting them is exact.
        steps = [np.arange(start[group] - self._minimum[group] + 1) / removals[group] for group in moves]
        factors = np.unique(np.concatenate(steps))

        def scaled(factor: float) -> IntArray:
            kept = self._rounded_up(start - np.floor(factor * removals + _ROUNDING).astype(np.int64))
            return np.minimum(np.maximum(kept, self._minimum), most)

        found = bisect_left(factors, True, key=lambda factor: bool(self.macs(scaled(factor)) <= self._limit))
        return scaled(factors[min(found, len(factors) - 1)])

    def _give_back(self, plan: IntArray, start: IntArray, removals: IntArray, most: IntArray) -> IntArray:
        """Adds single steps, each time to the group that lost the largest part of its removals, while one fits."""
        while True:
            up = np.minimum(self._rounded_up(plan + 1), most) - plan  # [G]
            fits = (up > 0) & (self.macs(plan + np.diag(up)) <= self._limit)
            if not fits.any():
                return plan
            lost = np.where(fits, (start - plan) / np.maximum(removals, 1), -np.inf)
            group = int(np.argmax(lost))
            plan[group] += up[group]

    def _exchange(self, plan: IntArray, ceiling: IntArray) -> IntArray:
        """Exchanges filters between groups, by as few steps as it takes to come within the tolerance."""
        for reach in (1, 2, 4, 8, 16):
            if self.macs(plan) >= self._enough:
                break
            plan = self._exchange_pairs(plan, ceiling, reach)
            plan = self._exchange_with_all(plan, ceiling, reach)
        return plan

    def _exchange_pairs(self, plan: IntArray, ceiling: IntArray, reach: int) -> IntArray:
        """Climbs by the best change of two groups at a time; finds the combinations that small networks need."""
        macs = int(self.macs(plan))
        lowest, highest = self._steps(self._minimum), self._steps(ceiling)
        moves = np.stack(np.meshgrid(*2 * [np.arange(-reach, reach + 1)]), -1).reshape(-1, 2)  # [M, 2]
        improved = True
        while improved and macs < self._enough:
            improved, centre = False, self._steps(plan)
            for pair in combinations(range(len(plan)), 2):
                steps = np.repeat(centre[None], len(moves), 0)  # [M, G]
                steps[:, pair] += moves
                plans = np.minimum(np.clip(steps, lowest, highest) * self.round_to, ceiling)
                costs = self.macs(plans)
                best = int(np.argmax(np.where(costs <= self._limit, costs, -1)))
                if macs < costs[best] <= self._limit:
                    plan, macs, improved = plans[best], int(costs[best]), True
        return plan

    def _exchange_with_all(self, plan: IntArray, ceiling: IntArray, reach: int) -> IntArray:
        """Steps up in one group, paid for by the same fraction of all others; for a group that is in every layer."""
        macs = int(self.macs(plan))
        for group in range(len(plan)):
            if macs >= self._enough:
                break
            start, others = plan.copy(), plan.copy()
            start[group] = min((self._steps(plan)[group] + reach) * self.round_to, ceiling[group])
            others[group] = 0
            candidate = self._give_back(self._scale(start, others, start), start, others, start)
            if macs < (cost := int(self.macs(candidate))) <= self._limit:
                plan, macs = candidate, cost
        return plan

    def _steps(self, counts: IntArray) -> IntArray:
        return -(-counts // self.round_to)
