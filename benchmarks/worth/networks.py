"""The pruned networks whose worth is measured: of rules, searches and other packages, and plans drawn at random."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from prune_env import FilterPruneEnv
from prune_env.common.fingerprints import weights_fingerprint
from prune_env.pruning import Plan

from ..compare.methods import METHODS
from ..compare.methods.plans import from_keep_ratios
from ..compare.methods.rules import RULES
from ..compare.rows import Row, canonical, with_defaults
from .rivals import RIVALS

SLACK = 0.002
"""Plans that are drawn may cost this fraction of the original MACs less than the budget."""
DRAWS = 1000
"""Draws for each plan, at most."""
RESNET20 = (*[16] * 4, *[32] * 4, *[64] * 4)
NARROW_STAGE = (5, 6, 4, 4, 28, 30, 11, 28, 64, 64, 64, 38)
"""Filters of ResNet-20 at half of its MACs with a narrow first stage, a shape like that which TAS found (Dong & Yang,
NeurIPS 2019, arXiv:1905.09717)."""
SOURCES = tuple(dict.fromkeys([*RULES, *RIVALS, "narrow_stage", "drawn", *METHODS]))
"""Where networks come from: rules, rivals, the narrow stage, plans drawn at random, and search methods."""


class Candidate(NamedTuple):
    """A pruned network and where it comes from."""

    sources: tuple[str, ...]
    """Those of `SOURCES` that have it; a source counts as often as it found the network."""
    plan: Plan | None
    """None for the network of a rival, which no plan describes."""
    evaluations: int | None
    """Looks at an accuracy that the first source took to find it; None for a rival that has not run yet."""


def network_key(row: Row) -> str:
    """Return a text that is equal for rows of the same network. Where a plan comes from does not count."""
    return canonical([row["problem"], row["weights_fingerprint"], row["target_macs"], row["plan"] or row["sources"][0]])


def candidates(env: FilterPruneEnv, target: float, random: int, found: Iterable[Row] = ()) -> list[Candidate]:
    """Return the networks of a budget, each plan once.

    Args:
        env: The environment.
        target: Fraction of the MACs that may stay.
        random: Number of random plans.
        found: Rows of `benchmarks.compare`, whose winners at this budget are taken.

    Raises:
        ValueError: A row is of another network, weights or kind of evaluation, or there are too few plans to draw.
    """
    every = [Candidate((name,), rule(env, target), 0) for name, rule in RULES.items()]
    if env.problem.full_plan == RESNET20 and target == 0.5:
        keep = np.array(NARROW_STAGE) / RESNET20
        every.append(Candidate(("narrow_stage",), from_keep_ratios(env.clone(target=target), keep), 0))
    weights = weights_fingerprint(env.problem.model)
    every += [_winner(env, weights, row) for row in found if row["target_macs"] == target]
    every += [Candidate(("drawn",), plan, 0) for plan in _drawn(env, target, random)]
    merged: dict[Plan | None, Candidate] = {}
    for one in every:
        known = merged.get(one.plan)
        merged[one.plan] = one if known is None else known._replace(sources=known.sources + one.sources)
    return [*merged.values(), *(Candidate((name,), None, None) for name in RIVALS)]


def _winner(env: FilterPruneEnv, weights: str, row: Row) -> Candidate:
    """Return the winner of a search on a network with these weights, given by their fingerprint."""
    plan, budget = tuple(row["plan"]), env.budgets.of(row["target_macs"])
    same = tuple(row["full_plan"]) == tuple(env.problem.full_plan) and budget.meets(plan)
    if not same or row.get("weights_fingerprint") not in (None, weights):
        raise ValueError(
            f"--found has a row of {row['method']!r}, seed {row['seed']}, with another network, weights or budget than "
            "this problem; give rows of benchmarks.compare with the same ones"
        )
    if with_defaults(row["problem"])["finetune_batches"]:
        raise ValueError(
            f"--found has a row of {row['method']!r}, seed {row['seed']}, whose plans were finetuned before they were "
            "evaluated; give rows without finetune-batches"
        )
    return Candidate((row["method"],), plan, row["evaluations"])


def _drawn(env: FilterPruneEnv, target: float, count: int) -> list[Plan]:
    """Return different plans whose keep ratios are drawn uniformly, before they are scaled to the budget."""
    game, rng = env.clone(target=target), np.random.default_rng(0)
    plans: dict[Plan, None] = {}
    for _ in range(DRAWS * count):
        plan = from_keep_ratios(game, rng.uniform(size=len(env.problem.full_plan)))
        if target - SLACK <= env.cost_ratios(plan)[0] <= target:
            plans[plan] = None
        if len(plans) == count:
            return list(plans)
    if count:
        raise ValueError(
            f"{DRAWS * count} draws gave {len(plans)} different plans of {target - SLACK:g} to {target:g} of the MACs, "
            f"not {count}; set fewer random plans, or a smaller round-to"
        )
    return []
