"""Turn keep ratios into plans that meet the budget, for methods that do not play the environment."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prune_env import FilterPruneEnv
from prune_env.pruning import Plan


def from_keep_ratios(env: FilterPruneEnv, keep: Sequence[float] | np.ndarray) -> Plan:
    """Return a plan that costs the budget and keeps filters in the proportions of the keep ratios.

    `Budget.project` scales all removals by one factor, so a method chooses their proportions.

    Args:
        env: The environment.
        keep: Fraction of the filters of each group, [G] in [0, 1].
    """
    budget = env.budget
    return budget.project(budget.full_plan, counts(env, keep), last=True)


def counts(env: FilterPruneEnv, keep: Sequence[float] | np.ndarray) -> Plan:
    """Return the number of filters that each keep ratio keeps, without regard to the budget."""
    return tuple(env.budget.kept(group, float(ratio)) for group, ratio in enumerate(keep))
