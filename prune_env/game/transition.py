"""What a round leads to before anything is evaluated: the next plan, its cost, legal actions and observations.

The transition is a pure function of the plan before the round, the actions and the round's number. A search repeats the
same rounds again and again, so results are memoised. Letters: G agents, A rates, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..pruning import Cost, Plan
from .budget import Budget
from .observation import Observer

MEMORY = 10_000
"""Number of memoised round states; they take about ten megabytes."""


@dataclass(frozen=True, eq=False)
class RoundState:
    """The game after some rounds. Copy the arrays before handing them out: they are shared."""

    number: int
    """Rounds that have been played."""
    count: int
    """Rounds of an episode."""
    plan: Plan
    last_rates: tuple[float, ...]
    """Fraction of filters that each group lost in the last round."""
    macs_ratio: float
    params_ratio: float
    masks: np.ndarray  # int8 [G, A]
    observations: np.ndarray  # float32 [G, F]

    @property
    def rounds_left(self) -> float:
        """The fraction of the rounds that remains."""
        return 1 - self.number / self.count


class Transitions:
    """Computes where a game starts and where actions lead."""

    def __init__(self, budget: Budget, cost: Cost, observer: Observer, count: int) -> None:
        self._budget, self._cost, self._observer, self._count = budget, cost, observer, count
        self._full = cost.macs(budget.full_plan), cost.params(budget.full_plan)
        self._memory: dict[tuple[Plan, tuple[int, ...], int], RoundState] = {}
        self.start = self._state(0, budget.full_plan, (0.0,) * len(budget.full_plan))
        """The state of a new episode."""

    def after(self, state: RoundState, actions: Sequence[int]) -> RoundState:
        """Return the state after one more round.

        Illegal actions count as the nearest legal ones below. The resulting plan is projected onto the budget.

        Args:
            state: The state before the round.
            actions: One action per group, [G].
        """
        key = (state.plan, tuple(actions), state.number)
        found = self._memory.get(key)
        if found is None:
            if len(self._memory) >= MEMORY:
                self._memory.clear()
            wanted = self._budget.apply(state.plan, actions, state.masks)
            plan = self._budget.project(state.plan, wanted, last=state.number + 1 == self._count)
            found = self._memory[key] = self.to(state, plan)
        return found

    def to(self, state: RoundState, plan: Plan) -> RoundState:
        """Return the state after one more round that ends with a given plan. The plan is not checked or memoised."""
        rates = tuple(1 - now / before for now, before in zip(plan, state.plan, strict=True))
        return self._state(state.number + 1, plan, rates)

    def cost_ratios(self, plan: Plan) -> tuple[float, float]:
        """Return MACs and parameters of a plan as fractions of the original network's."""
        return self._cost.macs(plan) / self._full[0], self._cost.params(plan) / self._full[1]

    def _state(self, number: int, plan: Plan, rates: tuple[float, ...]) -> RoundState:
        observations = self._observer.observe(plan, rates, 1 - number / self._count)
        masks = self._budget.action_masks(plan)
        return RoundState(number, self._count, plan, rates, *self.cost_ratios(plan), masks, observations)
