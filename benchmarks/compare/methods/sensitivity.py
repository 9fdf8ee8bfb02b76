"""Layer-wise sensitivity and a greedy choice: measure the loss of cutting each group alone, then cut the cheapest.

The analysis is that of Li et al. 2017 (arXiv:1608.08710, section 3.2): each group alone is cut to a grid of keep
ratios. The losses of groups are assumed to add up, and the cut that saves most MACs per point of accuracy is taken
next, until the budget of MACs is met. Plans of the analysis keep too many MACs to win, but count as evaluations.
"""

from __future__ import annotations

import numpy as np

from prune_env import FilterPruneEnv

from .counted import Counted
from .plans import counts
from .result import SearchResult

FINEST = 10
"""Largest number of keep ratios that are tried per group."""


def search(env: FilterPruneEnv, max_plans: int, seed: int) -> SearchResult:
    """Evaluate the analysis and its greedy plan; `seed` changes nothing.

    Raises:
        ValueError: `max_plans` is too small for one evaluation per group.
    """
    groups = len(env.problem.full_plan)
    cuts = min(FINEST, (max_plans - 1) // groups)
    if cuts < 1:
        raise ValueError(
            f"sensitivity evaluates a cut of each of {groups} groups and then one plan; raise max_plans={max_plans} "
            f"to at least {groups + 1}"
        )
    with Counted(env, max_plans) as counted:
        full = np.array(env.problem.full_plan)
        levels = np.array([counts(env, [1 - cut / (cuts + 1)] * groups) for cut in range(cuts + 1)])  # [L, G]
        losses = np.zeros(levels.shape)
        for group in range(groups):
            for cut in range(1, cuts + 1):
                alone = full.copy()
                alone[group] = levels[cut, group]
                losses[cut, group] = env.evaluator.original_accuracy - counted.accuracy(tuple(alone.tolist()))
        losses = np.maximum.accumulate(losses, 0)  # a gain from a deeper cut is noise of few images
        wanted = _greedy(env, levels, losses).tolist()
        counted.accuracy(env.budget.project(env.problem.full_plan, wanted, last=True))
    return counted.result()


def _greedy(env: FilterPruneEnv, levels: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Return the filter counts [G] of the first cuts that meet the budget of MACs, or of all cuts if none does."""
    groups = np.arange(levels.shape[1])
    at = np.zeros(len(groups), int)
    most = env.budget.cost_range[1]
    while (macs := env.problem.cost.macs(levels[at, groups])) > most:
        best, choice = np.inf, None
        for group in groups:
            for level in range(at[group] + 1, len(levels)):
                there = at.copy()
                there[group] = level
                saved = macs - env.problem.cost.macs(levels[there, groups])
                price = (losses[level, group] - losses[at[group], group] + 1e-6) / saved if saved > 0 else np.inf
                if price < best:  # the 1e-6 orders cuts without a loss: the largest saving first
                    best, choice = price, there
        if choice is None:
            break
        at = choice
    return levels[at, groups]
