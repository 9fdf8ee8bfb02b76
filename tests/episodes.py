"""Helpers that play episodes and compare what they returned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from prune_env import FilterPruneEnv, FilterPruneSuite

EnvMaker = Callable[..., FilterPruneEnv]
"""The fixture `make_env`."""
FAST: dict[str, Any] = {"reward_images": 100, "calibration_images": 200, "prove": False}
"""Settings of an environment with which tests run fast."""


def play(
    env: FilterPruneEnv | FilterPruneSuite, seed: int = 0, policy: str = "random", options: dict[str, Any] | None = None
) -> list[Any]:
    """Play one episode and return everything that reset and the steps returned.

    Args:
        env: The environment.
        seed: Seed of the actions.
        policy: random (legal actions), wild (any actions), idle (action 0), or the number of one action.
        options: Options of the reset.
    """
    rng = np.random.default_rng(seed)
    observations, infos = env.reset(seed=seed, options=options)
    record: list[Any] = [(observations, infos)]
    while env.agents:
        actions = {}
        for agent in env.agents:
            if policy == "random":
                actions[agent] = int(rng.choice(np.flatnonzero(infos[agent]["action_mask"])))
            elif policy == "wild":
                actions[agent] = int(rng.integers(env.action_space(agent).n))
            else:
                actions[agent] = 0 if policy == "idle" else int(policy)
        result = env.step(actions)
        infos = result[-1]
        record.append(result)
    return record


def play_together(
    env: FilterPruneEnv, episodes: int, together: int = 1, between: Callable[[int], None] = lambda turn: None
) -> dict[str, Any]:
    """Play random episodes and return the state of the archive.

    Args:
        env: The environment; clones of it play with it.
        episodes: Number of episodes. Each has its own seed, so the plans do not depend on `together`.
        together: Episodes at the same time.
        between: Called with the number of the turn, between the two halves of every step.
    """
    envs = [env, *(env.clone() for _ in range(together - 1))]
    for turn in range(episodes // together):
        rngs = [np.random.default_rng(turn * together + place) for place in range(together)]
        infos = [one.reset()[1] for one in envs]
        while envs[0].agents:
            for one, info, rng in zip(envs, infos, rngs, strict=True):
                one.step_async({a: int(rng.choice(np.flatnonzero(info[a]["action_mask"]))) for a in one.agents})
            between(turn)
            infos = [one.step_wait()[-1] for one in envs]
    return env.archive.state_dict()


def last_info(record: list[Any]) -> dict[str, Any]:
    """Return the first agent's info at the end of an episode."""
    info: dict[str, Any] = record[-1][-1]["conv_0"]
    return info


def episode_return(record: list[Any]) -> float:
    """Return the sum of an episode's rewards."""
    return float(sum(result[1]["conv_0"] for result in record[1:]))


def equal(one: Any, two: Any) -> bool:
    """Return whether two nested results have the same types and are equal to the bit."""
    if type(one) is not type(two):
        return False
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[key], two[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(equal, one, two))
    if isinstance(one, np.ndarray):
        return one.dtype == two.dtype and np.array_equal(one, two)
    return bool(one == two)
