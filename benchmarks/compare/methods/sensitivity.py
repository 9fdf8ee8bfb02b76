"""Layer-wise sensitivity, then greed: cut one group at a time and look, and then cut where it costs least.

The analysis is that of Li et al. 2017 (arXiv:1608.08710, section 3.2): each group alone is cut to a grid of keep
ratios. Losses of groups are then taken to add up, and whatever saves most MACs per point of accuracy goes next, until
the budget of MACs is met. Plans of the analysis keep too many MACs to win, yet each of them is paid for.
"""

from __future__ import annotations

import numpy as np

from prune_env import FilterPruneEnv

from .counted import Counted
from .plans import counts
from .result import SearchResult

FINEST = 10
"""Keep ratios that a group is tried at, at most."""


def search(env: FilterPruneEnv, max_plans: int, seed: int) -> SearchResult:
    """`seed` does not matter. Raises ValueError where the budget does not pay for one look at every group."""
    groups = len(env.problem.full_plan)
    looks = min(FINEST, (max_plans - 1) // groups)
    if looks < 1:
        raise ValueError(
            f"sensitivity looks at each of {groups} groups and then evaluates one plan; raise max_plans={max_plans} "
            f"to at least {groups + 1}"
        )
    with Counted(env, max_plans) as counted:
        full = np.array(env.problem.full_plan)
        levels = np.array([counts(env, [1 - look / (looks + 1)] * groups) for look in range(looks + 1)])  # [L, G]
        losses = np.zeros(levels.shape)
        for group in range(groups):
            for look in range(1, looks + 1):
                alone = full.copy()
                alone[group] = levels[look, group]
                losses[look, group] = env.evaluator.original_accuracy - counted.accuracy(tuple(alone.tolist()))
        losses = np.maximum.accumulate(losses, 0)  # what a few images say in favour of cutting deeper is noise
        wanted = _greedy(env, levels, losses).tolist()
        counted.accuracy(env.budget.project(env.problem.full_plan, wanted, last=True))
    return counted.result()


def _greedy(env: FilterPruneEnv, levels: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Filter counts [G] at which the budget of MACs is met first, or at which nothing is left to cut."""
    groups = np.arange(levels.shape[1])
    at = np.zeros(len(groups), int)
    limit = env.budget.target_macs * env.problem.cost.macs(env.problem.full_plan)
    while (macs := env.problem.cost.macs(levels[at, groups])) > limit:
        best, choice = np.inf, None
        for group in groups:
            for level in range(at[group] + 1, len(levels)):
                there = at.copy()
                there[group] = level
                saved = macs - env.problem.cost.macs(levels[there, groups])
                price = (losses[level, group] - losses[at[group], group] + 1e-6) / saved if saved > 0 else np.inf
                if price < best:  # the 1e-6 points tell free cuts apart: the largest first
                    best, choice = price, there
        if choice is None:
            break
        at = choice
    return levels[at, groups]
