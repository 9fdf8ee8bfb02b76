"""The one place where evaluations are counted, whether a method plays the environment or asks for plans itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from torch import nn

from prune_env import FilterPruneEnv
from prune_env.evaluation.racing import Race
from prune_env.game.archive import Entry
from prune_env.pruning import Plan

from .result import SearchResult

PROPOSALS = 3
"""Plans that a method may ask for, as a multiple of its budget: one that repeats itself comes to an end, too."""


class Spent(Exception):
    """The budget is used up."""


class Budgeted:
    """Within `with`, stands where the problem's evaluator stood and counts distinct plans; repeats are free.

    The first question after the budget's last plan raises `Spent`, which ends the `with` block quietly. Plans that
    other runs have evaluated count like any other.

    network_of  evaluate this network in place of the plan's own: weights reconstructed after cutting
    """

    def __init__(
        self, problem: FilterPruneEnv, budget: int, network_of: Callable[[Plan], nn.Module] | None = None
    ) -> None:
        if budget < 1:
            raise ValueError(f"budget must be at least 1 plan, got {budget}")
        self._problem, self._budget, self._network_of = problem, budget, network_of
        self._evaluator = problem.evaluator
        self._known: dict[Plan, float] = {}
        self._proposals = 0
        self._seconds = 0.0

    def __enter__(self) -> Budgeted:
        self._problem.evaluator = self  # type: ignore[assignment]
        self._begin = time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        self._seconds = time.perf_counter() - self._begin
        self._problem.evaluator = self._evaluator
        return isinstance(error, Spent)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._evaluator, name)

    def accuracy(self, plan: Plan, race: Race | None = None) -> float:
        """What the evaluator says of the plan."""
        if len(self._known) == self._budget or self._proposals == PROPOSALS * self._budget:
            raise Spent
        self._proposals += 1
        if plan not in self._known:
            network_of, evaluator = self._network_of, self._evaluator
            self._known[plan] = (
                evaluator.accuracy_of(network_of(evaluator.measured(plan)))
                if network_of
                else evaluator.accuracy(plan, race)
            )
        return self._known[plan]

    def result(self) -> SearchResult:
        """What was evaluated so far."""
        target, original = self._problem.budget.target_macs, self._evaluator.original_accuracy
        entries, evaluations = [], []
        for plan, accuracy in self._known.items():
            ratios = self._problem.cost_ratios(plan)
            fits = target is None or ratios[0] <= target
            evaluations.append(accuracy if fits else None)
            if fits:
                entries.append(Entry(plan, accuracy, *ratios, accuracy / original - 1))
        return SearchResult(tuple(entries), tuple(evaluations), self._proposals, self._seconds)
