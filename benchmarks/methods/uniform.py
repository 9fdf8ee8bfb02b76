"""Every group loses the same fraction of its filters: one plan, whatever the budget of evaluations."""

from __future__ import annotations

import time

from prune_env import FilterPruneEnv
from prune_env.archive import Entry

from .result import SearchResult


def search(problem: FilterPruneEnv, budget: int, seed: int) -> SearchResult:
    """Neither `budget` nor `seed` matters."""
    begin = time.perf_counter()
    plan = problem.budget.uniform()
    accuracy = problem.evaluator.accuracy(plan)
    episode_return = accuracy / problem.evaluator.original_accuracy - 1
    entry = Entry(plan, accuracy, *problem.cost_ratios(plan), episode_return)
    return SearchResult((entry,), time.perf_counter() - begin)
