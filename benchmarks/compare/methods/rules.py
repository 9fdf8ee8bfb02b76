"""Plans of a budget that need no search."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from prune_env import FilterPruneEnv
from prune_env.pruning import Plan
from prune_env.pruning.groups import PruningGroup

from . import magnitude
from .plans import from_keep_ratios


def uniform(env: FilterPruneEnv, target: float) -> Plan:
    """Return the uniform plan of a budget."""
    return env.budgets.of(target).uniform()


def is_tied(group: PruningGroup) -> bool:
    """Return whether an addition ties the layers of a group."""
    return len(group.layers) > 1


def insides(env: FilterPruneEnv, target: float) -> Plan:
    """Keep groups that are tied by an addition whole, and cut all others evenly.

    This is the usual rule for residual networks without a search. In a network without additions it is the uniform
    plan; where the other groups are too small for the budget, their removals are scaled up by the budget's rule.
    """
    tied = np.array([is_tied(group) for group in env.groups])
    if not tied.any():
        return uniform(env, target)
    game = env.clone(target=target)
    full, low, high = env.problem.full_plan, 0.0, 1.0
    for _ in range(30):  # the largest keep ratio that meets the budget
        middle = (low + high) / 2
        plan = tuple(game.budget.kept(group, 1.0 if tied[group] else middle) for group in range(len(full)))
        low, high = (middle, high) if env.cost_ratios(plan)[0] <= target else (low, middle)
    return from_keep_ratios(game, np.where(tied, 1.0, low))


RULES: dict[str, Callable[[FilterPruneEnv, float], Plan]] = {
    "uniform": uniform,
    "insides": insides,
    "magnitude": lambda env, target: magnitude.plan(env.clone(target=target)),
    "least_change": lambda env, target: env.least_change.plan(target),
}
"""Plans that need no search: one evaluation for each budget."""
