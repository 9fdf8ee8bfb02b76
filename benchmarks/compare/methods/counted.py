"""Count the evaluations of a search, whether a method plays the environment or evaluates plans itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from torch import nn

from prune_env import FilterPruneEnv
from prune_env.common.settings import Count, checked
from prune_env.evaluation.evaluator import DelegatingEvaluator, Evaluator
from prune_env.game.archive import Entry
from prune_env.pruning import Plan

from .result import SearchResult

PROPOSALS = 3
"""Plans that a method may propose, as a multiple of `max_plans`. It also ends methods that repeat themselves."""


class Spent(Exception):
    """All evaluations have been used."""


class CountingEvaluator(DelegatingEvaluator):
    """An evaluator that counts distinct plans and raises `Spent` after the last one. Repeats are free.

    Plans that other runs have evaluated count like any other.

    Args:
        evaluator: The evaluator that measures.
        max_plans: Number of distinct plans.
        network_of: Evaluate this network of a plan instead of the plan's own: weights reconstructed after cutting.

    Raises:
        ValueError: `max_plans` is below 1.
    """

    def __init__(
        self, evaluator: Evaluator, max_plans: int, network_of: Callable[[Plan], nn.Module] | None = None
    ) -> None:
        super().__init__(evaluator)
        self._max_plans, self._network_of = checked("max_plans", max_plans, Count), network_of
        self.accuracies: dict[Plan, float] = {}
        """Accuracy of every distinct plan, in the order of evaluation."""
        self.proposals = 0
        """Number of proposed plans, including repeats."""

    def accuracy(self, plan: Plan) -> float:
        """Return the accuracy of a plan.

        Raises:
            Spent: All evaluations have been used.
        """
        if len(self.accuracies) == self._max_plans or self.proposals == PROPOSALS * self._max_plans:
            raise Spent
        self.proposals += 1
        if plan not in self.accuracies:
            network_of, evaluator = self._network_of, self.evaluator
            self.accuracies[plan] = evaluator.accuracy_of(network_of(plan)) if network_of else evaluator.accuracy(plan)
        return self.accuracies[plan]


class Counted:
    """A context in which a method searches; it ends quietly when all evaluations have been used.

    Example:
        >>> with Counted(env, max_plans=300) as counted:
        ...     while True:
        ...         play(counted.env)
        >>> counted.result()
    """

    def __init__(
        self, env: FilterPruneEnv, max_plans: int, network_of: Callable[[Plan], nn.Module] | None = None
    ) -> None:
        self._evaluator = CountingEvaluator(env.evaluator, max_plans, network_of)
        self.env = env.clone(self._evaluator)
        """A clone of the environment whose evaluations are counted."""
        self._seconds = 0.0

    def __enter__(self) -> Counted:
        self._start = time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        self._seconds = time.perf_counter() - self._start
        return isinstance(error, Spent)

    def accuracy(self, plan: Plan) -> float:
        """Evaluate a plan and count it."""
        return self._evaluator.accuracy(plan)

    def result(self) -> SearchResult:
        """Return what has been evaluated so far."""
        original = self._evaluator.original_accuracy
        limit = max((target for target in self.env.config.targets if target is not None), default=1.0)
        entries, evaluations = [], []
        for plan, accuracy in self._evaluator.accuracies.items():
            ratios = self.env.cost_ratios(plan)
            fits = ratios[0] <= limit
            evaluations.append(accuracy if fits else None)
            if fits:
                entries.append(Entry(plan, accuracy, *ratios, accuracy / original - 1))
        return SearchResult(tuple(entries), tuple(evaluations), self._evaluator.proposals, self._seconds)
