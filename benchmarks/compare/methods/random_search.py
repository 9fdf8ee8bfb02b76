"""Uniformly random legal actions: the opponent that every learner has to beat."""

from __future__ import annotations

import numpy as np

from prune_env import FilterPruneEnv

from .counted import Counted
from .result import SearchResult


def search(env: FilterPruneEnv, max_plans: int, seed: int) -> SearchResult:
    """Plays until `max_plans` distinct plans are evaluated."""
    rng = np.random.default_rng(seed)
    with Counted(env, max_plans) as counted:
        while True:
            play(counted.env, rng)
    return counted.result()


def play(env: FilterPruneEnv, rng: np.random.Generator) -> None:
    """One episode of uniformly random legal actions."""
    _, infos = env.reset()
    while env.agents:
        legal = {agent: np.flatnonzero(infos[agent]["action_mask"]) for agent in env.agents}
        *_, infos = env.step({agent: int(rng.choice(actions)) for agent, actions in legal.items()})
