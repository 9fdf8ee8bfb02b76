"""Uniformly random legal actions: the opponent that every learner has to beat."""

from __future__ import annotations

import numpy as np

from prune_env import FilterPruneEnv

from .budgeted import Budgeted
from .result import SearchResult


def search(problem: FilterPruneEnv, budget: int, seed: int) -> SearchResult:
    """Plays until `budget` distinct plans are evaluated."""
    rng = np.random.default_rng(seed)
    with Budgeted(problem, budget) as budgeted:
        while True:
            _, infos = problem.reset()
            while problem.agents:
                legal = {agent: np.flatnonzero(infos[agent]["action_mask"]) for agent in problem.agents}
                *_, infos = problem.step({agent: int(rng.choice(actions)) for agent, actions in legal.items()})
    return budgeted.result()
