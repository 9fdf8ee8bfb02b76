"""The least-change plan: cut where the outputs change least, to first order, for the MACs saved; one plan."""

from __future__ import annotations

from prune_env import FilterPruneEnv
from prune_env.pruning import Plan

from .counted import Counted
from .result import SearchResult


def search(env: FilterPruneEnv, max_plans: int, seed: int) -> SearchResult:
    """Evaluate the least-change plan; `max_plans` and `seed` change nothing."""
    with Counted(env, max_plans) as counted:
        counted.accuracy(plan(env))
    return counted.result()


def plan(env: FilterPruneEnv) -> Plan:
    """Return the least-change plan of the current budget."""
    assert env.budget.target is not None, "methods are compared at a budget"
    return env.least_change.plan(env.budget.target)
