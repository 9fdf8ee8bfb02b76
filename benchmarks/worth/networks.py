"""The pruned networks whose worth is measured: of rules, searches and other packages, and plans drawn at random."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from prune_env import FilterPruneEnv
from prune_env.pruning import Plan

from ..compare.methods import METHODS
from ..compare.methods.plans import from_keep_ratios
from ..compare.methods.rules import RULES
from ..compare.rows import Row
from .rivals import RIVALS

SLACK = 0.002
"""Plans that are drawn may cost this fraction of the original MACs less than the budget."""
NARROW_STAGE = (5, 6, 4, 4, 28, 30, 11, 28, 64, 64, 64, 38)
"""Filters that ResNet-20 keeps at half of the MACs if its first stage is narrow, the shape that TAS found (Dong & Yang,
NeurIPS 2019, arXiv:1905.09717)."""
SOURCES = tuple(dict.fromkeys([*RULES, *RIVALS, "narrow_stage", "drawn", *METHODS]))
"""Where networks come from: rules, rivals, the narrow stage, plans drawn at random, and search methods."""


class Candidate(NamedTuple):
    """A pruned network and where it comes from."""

    source: str
    """One of `SOURCES`."""
    plan: Plan | None
    """None for the network of a rival, which no plan describes."""


def candidates(env: FilterPruneEnv, target: float, random: int, found: Iterable[Row] = ()) -> list[Candidate]:
    """Return the networks of a budget, each plan once.

    Args:
        env: The environment.
        target: Fraction of the MACs that may stay.
        random: Number of random plans.
        found: Rows of `benchmarks.compare`, whose winners at this budget are taken.
    """
    game = env.clone(target=target)
    every = [(name, rule(env, target)) for name, rule in RULES.items()]
    full = np.array(env.problem.full_plan)
    if len(full) == len(NARROW_STAGE) and (full >= NARROW_STAGE).all():
        every.append(("narrow_stage", from_keep_ratios(game, NARROW_STAGE / full)))
    every += [(row["method"], tuple(row["plan"])) for row in found if row["target_macs"] == target]
    rng = np.random.default_rng(0)
    for _ in range(random):
        plan = None
        while plan is None or not target - SLACK <= env.cost_ratios(plan)[0] <= target:
            plan = from_keep_ratios(game, rng.uniform(size=len(full)))
        every.append(("drawn", plan))
    sources: dict[Plan, str] = {}
    for source, plan in every:
        sources.setdefault(plan, source)
    return [Candidate(source, plan) for plan, source in sources.items()] + [Candidate(name, None) for name in RIVALS]
