"""Global magnitude pruning: the smallest filters go, wherever they are; one plan.

A filter's size is its L1 norm (Li et al. 2017, arXiv:1608.08710) divided by the mean of its layer, because norms of
layers with unlike fan-in do not compare. A group of several layers takes the mean over them.
"""

from __future__ import annotations

from bisect import bisect_left

import numpy as np

from prune_env import FilterPruneEnv
from prune_env.pruning import importance

from .budgeted import Budgeted
from .plans import counts, from_keep_ratios
from .result import SearchResult


def search(problem: FilterPruneEnv, budget: int, seed: int) -> SearchResult:
    """Neither `budget` nor `seed` matters."""
    with Budgeted(problem, budget) as budgeted:
        scores = [score.numpy() for score in importance.scores("l1", problem.model, problem.groups).values()]
        scores = [score / score.mean() for score in scores]
        limit = problem.budget.target_macs * problem.cost.macs(problem.full_plan)
        thresholds = np.unique(np.concatenate(scores))

        def keep(threshold: float) -> list[float]:
            return [float((score > threshold).mean()) for score in scores]

        def enough(threshold: float) -> bool:
            return problem.cost.macs(counts(problem, keep(threshold))) <= limit

        # The lowest threshold that is enough; the projection then fills the gap that whole filters leave.
        lowest = min(bisect_left(thresholds, True, key=enough), len(thresholds) - 1)
        budgeted.accuracy(from_keep_ratios(problem, keep(thresholds[lowest])))
    return budgeted.result()
