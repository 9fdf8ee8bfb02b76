"""Transfer without learning: copy the rates of a good plan of ResNet-20 to the nearest layers of another network.

Letters: G groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from prune_env import FilterPruneEnv
from prune_env.networks import create
from prune_env.pruning import Plan, inspect
from prune_env.pruning.groups import PruningGroup

from ..compare import rows
from ..compare.methods.plans import from_keep_ratios
from ..compare.methods.rules import is_tied
from ..compare.model import OWN_WEIGHTS

PLANS = Path(__file__).parents[1] / "results" / "resnet20-search.jsonl"
"""Plans that search methods found for ResNet-20, for 30 and 50 % of the MACs; those with weights of their own do not
count."""


def plan(env: FilterPruneEnv, target: float) -> Plan:
    """Return the plan whose groups keep what the nearest group of ResNet-20 keeps in its best plan.

    The plan for the nearest budget is copied; the budget's rule then scales all removals by one factor.
    """
    found = [row for row in rows.read([PLANS]) if row["method"] not in OWN_WEIGHTS]
    nearest = min((row["target_macs"] for row in found), key=lambda budget: abs(budget - target))
    best = max((row for row in found if row["target_macs"] == nearest), key=lambda row: row["search_accuracy"])
    donors = inspect(create("resnet20").eval(), torch.zeros(2, 3, 32, 32)).groups
    copied = np.array(best["plan"]) / best["full_plan"]
    return from_keep_ratios(env.clone(target=target), copied[nearest_groups(env.groups, donors)])


def nearest_groups(groups: Sequence[PruningGroup], donors: Sequence[PruningGroup]) -> list[int]:
    """Return the number of the nearest donor for each group [G].

    Groups that an addition ties match such groups, and others match others, as far as there are any. Among them the
    one at the most similar relative depth is the nearest.
    """
    ours, theirs = np.linspace(0, 1, len(groups)), np.linspace(0, 1, len(donors))
    chosen = []
    for depth, group in zip(ours, groups, strict=True):
        alike = [number for number, donor in enumerate(donors) if is_tied(donor) == is_tied(group)]
        chosen.append(min(alike or range(len(donors)), key=lambda number: abs(theirs[number] - depth)))
    return chosen
