"""From what methods propose to plans that meet the budget, the same way for all that do not play the environment."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prune_env import FilterPruneEnv
from prune_env.pruning import Plan


def from_keep_ratios(env: FilterPruneEnv, keep: Sequence[float] | np.ndarray) -> Plan:
    """The plan of the budget's cost nearest in kind to keeping a fraction of each group's filters, [G] in [0, 1].

    `Budget.project` scales all removals by one factor, so that proportions are what a method chooses.
    """
    budget = env.budget
    return budget.project(budget.full_plan, counts(env, keep), last=True)


def counts(env: FilterPruneEnv, keep: Sequence[float] | np.ndarray) -> Plan:
    """The filters that these fractions keep, whatever they cost."""
    return tuple(env.budget.kept(group, float(ratio)) for group, ratio in enumerate(keep))
