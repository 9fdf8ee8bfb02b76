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
            play(problem, rng)
    return budgeted.result()


def play(env: FilterPruneEnv, rng: np.random.Generator) -> None:
    """One episode of uniformly random legal actions."""
    _, infos = env.reset()
    while env.agents:
        legal = {agent: np.flatnonzero(infos[agent]["action_mask"]) for agent in env.agents}
        *_, infos = env.step({agent: int(rng.choice(actions)) for agent, actions in legal.items()})
