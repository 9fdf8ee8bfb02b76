"""Global magnitude pruning: the smallest filters go, wherever they are; one plan.

A filter's size is its L1 norm (Li et al. 2017, arXiv:1608.08710) divided by the mean of its layer, because norms of
layers with unlike fan-in do not compare. A group of several layers takes the mean over them.
"""

from __future__ import annotations

import numpy as np

from prune_env import FilterPruneEnv
from prune_env.pruning import importance

from .budgeted import Budgeted
from .plans import project
from .result import SearchResult


def search(problem: FilterPruneEnv, budget: int, seed: int) -> SearchResult:
    """Neither `budget` nor `seed` matters."""
    with Budgeted(problem, budget) as budgeted:
        scores = [score.numpy() for score in importance.scores("l1", problem.model, problem.groups).values()]
        scores = [score / score.mean() for score in scores]
        limit = problem.budget.target_macs * problem.cost.macs(problem.full_plan)
        thresholds = np.unique(np.concatenate(scores))
        # The lowest threshold that is enough; the projection then fills the gap that whole filters leave.
        low, high = 0, len(thresholds) - 1
        while low < high:
            middle = (low + high) // 2
            if problem.cost.macs(_counts(problem, scores, thresholds[middle])) <= limit:
                high = middle
            else:
                low = middle + 1
        budgeted.accuracy(project(problem.budget, _counts(problem, scores, thresholds[low])))
    return budgeted.result()


def _counts(problem: FilterPruneEnv, scores: list[np.ndarray], threshold: float) -> np.ndarray:
    """Filters of each group above the threshold, [G], at least as many as must stay."""
    counts = np.array([int((score > threshold).sum()) for score in scores])
    return np.minimum(np.maximum(counts, problem.budget.min_filters), problem.full_plan)
