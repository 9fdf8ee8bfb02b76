"""From what methods propose to plans that meet the budget, the same way for all that do not play the environment."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prune_env import FilterPruneEnv
from prune_env.budget import Budget
from prune_env.pruning import Plan


def from_keep_ratios(problem: FilterPruneEnv, keep: Sequence[float] | np.ndarray) -> Plan:
    """The plan of the budget's cost nearest in kind to keeping a fraction of each group's filters, [G] in [0, 1].

    `Budget.project` scales all removals by one factor, so that proportions are what a method chooses.
    """
    return project(problem.budget, np.rint(np.asarray(keep) * problem.full_plan))


def project(budget: Budget, counts: np.ndarray) -> Plan:
    """Wanted filter counts [G], rounded as the budget rounds and brought onto its cost."""
    full = np.array(budget.full_plan)
    steps = np.ceil(np.maximum(counts, budget.min_filters) / budget.round_to)
    return budget.project(budget.full_plan, np.minimum(steps * budget.round_to, full).astype(int).tolist(), last=True)
