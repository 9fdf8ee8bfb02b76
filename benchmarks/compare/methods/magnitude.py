"""Global magnitude pruning: remove the smallest filters of the whole network; one plan.

A filter's size is its L1 norm (Li et al. 2017, arXiv:1608.08710) divided by the mean of its layer, because norms of
layers with different fan-in cannot be compared. A group of several layers takes the mean over them.
"""

from __future__ import annotations

from bisect import bisect_left

import numpy as np

from prune_env import FilterPruneEnv
from prune_env.pruning import Plan, importance

from .counted import Counted
from .plans import counts, from_keep_ratios
from .result import SearchResult


def search(env: FilterPruneEnv, max_plans: int, seed: int) -> SearchResult:
    """Evaluate the plan of global magnitude pruning; `max_plans` and `seed` change nothing."""
    with Counted(env, max_plans) as counted:
        counted.accuracy(plan(env))
    return counted.result()


def plan(env: FilterPruneEnv) -> Plan:
    """Return the plan of global magnitude pruning for the current budget."""
    scores = [score.numpy() for score in importance.scores("l1", env.problem.model, env.groups).values()]
    scores = [score / score.mean() for score in scores]
    most = env.budget.cost_range[1]
    thresholds = np.unique(np.concatenate(scores))

    def keep(threshold: float) -> list[float]:
        return [float((score > threshold).mean()) for score in scores]

    def enough(threshold: float) -> bool:
        return env.budget.cost(counts(env, keep(threshold))) <= most

    # The lowest threshold that meets the budget. The projection then uses what remains of it.
    lowest = min(bisect_left(thresholds, True, key=enough), len(thresholds) - 1)
    return from_keep_ratios(env, keep(thresholds[lowest]))
