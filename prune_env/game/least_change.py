"""Greedy plans: remove the filters that change the network's outputs least for the cost that they save.

A plan needs no accuracy: it follows from costs and from `output_changes` alone. Letters: G groups, C filters.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from ..pruning import Plan
from .budget import Budget, IntArray

PARTS = 16
"""A step removes this part of a group's original filters, at least one, in multiples of `round_to`."""


class LeastChange:
    """The least-change plan of every budget of one network.

    One path leads from the original network to the smallest one. Each step shrinks the group whose outputs change
    least, divided by the cost that the step saves; changes of different groups are added up. A budget's plan is the
    first on the path that meets its target, projected onto the budget.

    Args:
        rules: The rules of pruning rates; their target does not count.
        changes: For each group, the change of the outputs without its k least important filters, [C + 1].
    """

    def __init__(self, rules: Budget, changes: Sequence[np.ndarray]) -> None:
        self.changes = tuple(changes)
        self._rules = rules
        self._path: list[IntArray] = []
        self._plans: dict[float, Plan] = {}

    def plan(self, target: float) -> Plan:
        """Return the plan of a target.

        Raises:
            ValueError: The target is no fraction in (0, 1], or out of reach.
        """
        found = self._plans.get(target)
        if found is None:
            budget = self._rules.with_target(target)
            self._path = self._path or self._follow()
            most = budget.cost_range[1]
            place = bisect_left(self._path, True, key=lambda plan: bool(budget.cost(plan) <= most))
            nearest = self._path[min(place, len(self._path) - 1)]
            found = budget.project(budget.full_plan, nearest.tolist(), last=True)
            self._plans[target] = found
        return found

    def change(self, plan: Sequence[int] | np.ndarray) -> float:
        """Return the predicted change of the outputs: the sum over the groups that a plan cuts.

        Args:
            plan: Filters that are kept in each group, [G].

        Returns:
            The mean squared change, as a fraction of the outputs' variance. It is 0 for the original network.

        Raises:
            ValueError: The plan has another number of groups, or no number of filters that a group can keep.
        """
        full, kept = np.array(self._rules.full_plan), np.asarray(plan)
        if kept.shape != full.shape or kept.dtype.kind not in "iu" or ((kept < 0) | (kept > full)).any():
            raise ValueError(
                f"plan {plan} must keep a whole number of filters in each group, from 0 to {tuple(full.tolist())}"
            )
        return float(sum(curve[count] for curve, count in zip(self.changes, full - kept, strict=True)))

    def _follow(self) -> list[IntArray]:
        """Return the plans of the path, from the original to the smallest network."""
        full, fewest = np.array(self._rules.full_plan), self._rules.fewest
        multiple = self._rules.multiples
        step = np.maximum(1, full // PARTS // multiple) * multiple
        plan, path = full.copy(), [full]
        while (plan > fewest).any():
            smaller = np.maximum(self._rules.limits.rounded_up(plan - step), fewest)
            saved = self._rules.cost(plan) - self._rules.cost(plan + np.diag(smaller - plan))  # [G]
            # Where a step saves nothing, as a measured cost may say, those that follow it count.
            rest = self._rules.cost(plan) - self._rules.cost(plan + np.diag(fewest - plan))  # [G]
            saved = np.where(saved > 0, saved, rest * (plan - smaller) / np.maximum(plan - fewest, 1))
            change = np.array(
                [
                    curve[whole - after] - curve[whole - now]
                    for curve, whole, now, after in zip(self.changes, full, plan, smaller, strict=True)
                ]
            )
            # A change of 0 is below the noise; then the step that saves most comes first.
            price = (np.maximum(change, 0) + np.finfo(np.float32).tiny) / np.maximum(saved, np.finfo(np.float32).tiny)
            group = int(np.argmin(np.where(smaller < plan, price, np.inf)))
            plan = plan.copy()
            plan[group] = smaller[group]
            path.append(plan)
        return path
