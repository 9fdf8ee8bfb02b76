"""Enumerate every plan that an episode can end with, to find the true optimum for coarse rates and few rounds."""

from __future__ import annotations

from itertools import product
from math import prod

import numpy as np
from tqdm import tqdm

from prune_env import FilterPruneEnv
from prune_env.pruning import Plan


def reachable(env: FilterPruneEnv, most: int = 200_000) -> list[Plan]:
    """Return the distinct final plans in lexicographic order.

    Legal actions suffice, because the environment replaces an illegal action by a legal one.

    Args:
        env: The environment.
        most: Largest number of joint actions in a round.

    Raises:
        ValueError: A round has more than `most` joint actions.
    """
    budget, rounds = env.budget, env.config.rounds
    plans = {env.problem.full_plan}
    for number in range(1, rounds + 1):
        masks = {plan: budget.action_masks(plan) for plan in plans}
        count = sum(prod(mask.sum(1).tolist()) for mask in masks.values())
        if count > most:
            raise ValueError(f"round {number} has {count:,} joint actions; take fewer rates, rounds or agents")
        plans = {
            budget.project(plan, budget.apply(plan, actions, mask), last=number == rounds)
            for plan, mask in masks.items()
            for actions in product(*map(np.flatnonzero, mask))
        }
    return sorted(plans)


def accuracies(env: FilterPruneEnv, plans: list[Plan]) -> dict[Plan, float]:
    """Return the accuracy of each plan. With a cache, only plans that the cache does not contain are measured."""
    return {plan: env.evaluator.accuracy(plan) for plan in tqdm(plans, unit="plan", mininterval=1)}
