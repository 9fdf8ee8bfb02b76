"""What a round leads to, as far as no accuracy is needed: the next plan, its cost, what is legal, what is seen.

A pure function of the plan before, the actions and the round. A search walks the same ways again and again, so what
was found is kept. Letters: G agents, A rates, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..pruning import Cost, Plan
from .budget import Budget
from .observation import Observer

KEPT = 10_000
"""Positions that are remembered; some ten megabytes."""


@dataclass(frozen=True, eq=False)
class RoundState:
    """After `number` of `count` rounds. Arrays are shared: copy what you hand out."""

    number: int
    count: int
    plan: Plan
    last_rates: tuple[float, ...]
    macs_ratio: float
    params_ratio: float
    masks: np.ndarray  # int8 [G, A]
    observations: np.ndarray  # float32 [G, F]

    @property
    def left(self) -> float:
        """The fraction of the rounds that is still to come."""
        return 1 - self.number / self.count


class Transitions:
    """The game's board: where it starts, and where actions lead."""

    def __init__(self, budget: Budget, cost: Cost, observer: Observer, count: int) -> None:
        """count: rounds of an episode."""
        self.count = count
        self._budget, self._cost, self._observer = budget, cost, observer
        self._full = cost.macs(budget.full_plan), cost.params(budget.full_plan)
        self._known: dict[tuple[Plan, tuple[int, ...], int], RoundState] = {}
        self.start = self._position(0, budget.full_plan, (0.0,) * len(budget.full_plan))

    def after(self, position: RoundState, actions: Sequence[int]) -> RoundState:
        """One round further; illegal actions are taken as the nearest legal ones below, overshoots are projected."""
        key = (position.plan, tuple(actions), position.number)
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= KEPT:
                self._known.clear()
            wanted = self._budget.apply(position.plan, actions, position.masks)
            plan = self._budget.project(position.plan, wanted, last=position.number + 1 == self.count)
            found = self._known[key] = self.to(position, plan)
        return found

    def to(self, position: RoundState, plan: Plan) -> RoundState:
        """One round further, with a plan that the caller answers for. Not remembered."""
        rates = tuple(1 - now / was for now, was in zip(plan, position.plan, strict=True))
        return self._position(position.number + 1, plan, rates)

    def cost_ratios(self, plan: Plan) -> tuple[float, float]:
        """MACs and parameters as fractions of the unpruned network's."""
        return self._cost.macs(plan) / self._full[0], self._cost.params(plan) / self._full[1]

    def _position(self, number: int, plan: Plan, rates: tuple[float, ...]) -> RoundState:
        seen = self._observer.observe(plan, rates, 1 - number / self.count)
        masks = self._budget.action_masks(plan)
        return RoundState(number, self.count, plan, rates, *self.cost_ratios(plan), masks, seen)
