"""Random search: uniformly random legal actions, the baseline of every learner."""

from __future__ import annotations

import numpy as np

from prune_env import FilterPruneEnv

from .counted import Counted
from .result import SearchResult


def search(env: FilterPruneEnv, max_plans: int, seed: int) -> SearchResult:
    """Play until `max_plans` distinct plans are evaluated.

    Args:
        env: The environment; its evaluations are counted.
        max_plans: Distinct plans that may be evaluated.
        seed: Seed of the search.
    """
    rng = np.random.default_rng(seed)
    with Counted(env, max_plans) as counted:
        while True:
            play(counted.env, rng)
    return counted.result()


def play(env: FilterPruneEnv, rng: np.random.Generator) -> None:
    """Play one episode of uniformly random legal actions."""
    _, infos = env.reset()
    while env.agents:
        legal = {agent: np.flatnonzero(infos[agent]["action_mask"]) for agent in env.agents}
        *_, infos = env.step({agent: int(rng.choice(actions)) for agent, actions in legal.items()})
