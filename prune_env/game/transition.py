"""What a round leads to before anything is evaluated: the next plan, its cost, legal actions and observations.

The transition is a pure function of the budget, the plan before the round, the actions and the round's number. A search
repeats the same rounds again and again, so results are memoised. Letters: G agents, A rates, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..pruning import Cost, Plan
from .budget import Budget
from .observation import Observer, Rounds

MEMORY = 10_000
"""Number of memoised round states; they take about ten megabytes."""


@dataclass(frozen=True, eq=False)
class RoundState:
    """The game after some rounds. Copy the arrays before handing them out: they are shared."""

    budget: Budget
    """The budget of this episode."""
    rounds: Rounds
    """Rounds that are left, and rounds of an episode."""
    plan: Plan
    last_rates: tuple[float, ...]
    """Fraction of filters that each group lost in the last round."""
    macs_ratio: float
    params_ratio: float
    cost_ratio: float
    """Fraction of the original cost that the budget limits."""
    masks: np.ndarray  # int8 [G, A]
    observations: np.ndarray  # float32 [G, F]

    @property
    def number(self) -> int:
        """Rounds that have been played."""
        return self.rounds.per_episode - self.rounds.left


class Transitions:
    """Computes where a game starts and where actions lead."""

    def __init__(self, cost: Cost, full_plan: Plan, observer: Observer, count: int) -> None:
        self._cost, self._full_plan, self._observer, self._count = cost, full_plan, observer, count
        self._full = cost.macs(full_plan), cost.params(full_plan)
        self._starts: dict[float | None, RoundState] = {}
        self._memory: dict[tuple[float | None, Plan, tuple[int, ...], int], RoundState] = {}

    def start(self, budget: Budget) -> RoundState:
        """Return the state of a new episode."""
        found = self._starts.get(budget.target)
        if found is None:
            found = self._state(budget, 0, self._full_plan, (0.0,) * len(self._full_plan))
            if len(self._starts) < MEMORY:
                self._starts[budget.target] = found
        return found

    def after(self, state: RoundState, actions: Sequence[int]) -> RoundState:
        """Return the state after one more round.

        Illegal actions count as the nearest legal ones below. The resulting plan is projected onto the budget.

        Args:
            state: The state before the round.
            actions: One action per group, [G].
        """
        budget = state.budget
        key = (budget.target, state.plan, tuple(actions), state.number)
        found = self._memory.get(key)
        if found is None:
            if len(self._memory) >= MEMORY:
                self._memory.clear()
            wanted = budget.apply(state.plan, actions, state.masks)
            plan = budget.project(state.plan, wanted, last=state.number + 1 == self._count)
            found = self._memory[key] = self.to(state, plan)
        return found

    def to(self, state: RoundState, plan: Plan) -> RoundState:
        """Return the state after one more round that ends with a given plan. The plan is not checked or memoised."""
        rates = tuple(1 - now / before for now, before in zip(plan, state.plan, strict=True))
        return self._state(state.budget, state.number + 1, plan, rates)

    def cost_ratios(self, plan: Plan) -> tuple[float, float]:
        """Return MACs and parameters of a plan as fractions of the original network's."""
        return self._cost.macs(plan) / self._full[0], self._cost.params(plan) / self._full[1]

    def _state(self, budget: Budget, number: int, plan: Plan, rates: tuple[float, ...]) -> RoundState:
        rounds = Rounds(self._count - number, self._count)
        observations = self._observer.observe(budget, plan, rates, rounds)
        masks = budget.action_masks(plan)
        ratios = *self.cost_ratios(plan), budget.ratio(plan)
        return RoundState(budget, rounds, plan, rates, *ratios, masks, observations)
