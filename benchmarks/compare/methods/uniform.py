"""Every group loses the same fraction of its filters: one plan, whatever the budget of evaluations."""

from __future__ import annotations

from prune_env import FilterPruneEnv

from .budgeted import Budgeted
from .result import SearchResult


def search(problem: FilterPruneEnv, budget: int, seed: int) -> SearchResult:
    """Neither `budget` nor `seed` matters."""
    with Budgeted(problem, budget) as budgeted:
        budgeted.accuracy(problem.budget.uniform())
    return budgeted.result()
