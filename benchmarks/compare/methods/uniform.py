"""Uniform pruning: every group loses the same fraction of its filters; one plan."""

from __future__ import annotations

from prune_env import FilterPruneEnv

from .counted import Counted
from .result import SearchResult


def search(env: FilterPruneEnv, max_plans: int, seed: int) -> SearchResult:
    """Evaluate the uniform plan; `max_plans` and `seed` change nothing."""
    with Counted(env, max_plans) as counted:
        counted.accuracy(env.budget.uniform())
    return counted.result()
