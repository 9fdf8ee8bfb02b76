"""From each agent's own observation and mask to arrays of equal size for all.

Shapes: N agents, O observation features and A actions, both the largest agent's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from .types import EnvSpec, SpaceSpec

OBSERVATION_KEYS = ("observation", "observations")
MASK_KEY = "action_mask"


def space_spec(agent: str, space: spaces.Space) -> SpaceSpec:
    """Describes an observation space, or the observation inside a Dict that also has an action mask.

    Raises ValueError where the space has no fixed number of features.
    """
    if isinstance(space, spaces.Dict):
        inner = [key for key in OBSERVATION_KEYS if key in space.spaces]
        if len(inner) == 1 and set(space.spaces) <= {inner[0], MASK_KEY}:
            return space_spec(agent, space.spaces[inner[0]])
    if isinstance(space, spaces.Discrete):
        return SpaceSpec("Discrete", (), int(space.n), int(space.start))
    if isinstance(space, (spaces.Box, spaces.MultiBinary)):
        shape = tuple(int(length) for length in space.shape)
        return SpaceSpec(type(space).__name__, shape, int(np.prod(shape)))
    raise ValueError(
        f"observation space of agent {agent!r} is {space}; expected Box, Discrete or MultiBinary, or a Dict of "
        f"'observation' (one of these) and '{MASK_KEY}'. Wrap the environment with gymnasium.spaces.flatten"
    )


def split(observation: Any) -> tuple[Any, Any]:
    """The observation proper and the mask beside it (None if there is none)."""
    if not isinstance(observation, Mapping):
        return observation, None
    inner = [key for key in OBSERVATION_KEYS if key in observation]
    return observation[inner[0]] if inner else observation, observation.get(MASK_KEY)


def flatten(agent: str, spec: SpaceSpec, observation: Any) -> np.ndarray:
    """One observation as numbers [spec.size]. Raises ValueError for another shape."""
    array = np.asarray(observation)
    if array.shape != spec.shape or array.dtype == object:
        raise ValueError(
            f"observation of agent {agent!r} has shape {array.shape}; its {spec.kind} space says {spec.shape}"
        )
    if spec.kind != "Discrete":
        return array.reshape(-1)
    index = int(array) - spec.start
    if not 0 <= index < spec.size:
        raise ValueError(
            f"observation of agent {agent!r} is {array}; its Discrete space goes from {spec.start} to "
            f"{spec.start + spec.size - 1}"
        )
    return np.eye(spec.size, dtype=np.float32)[index]


def pad_observations(spec: EnvSpec, observations: Mapping[str, Any]) -> np.ndarray:
    """float32 [N, O]; zeros for agents that `observations` leaves out. Raises ValueError for values not finite."""
    padded = np.zeros((spec.n_agents, spec.max_observation), dtype=np.float32)
    for row, agent, space in zip(padded, spec.agents, spec.observations, strict=True):
        if agent in observations:
            row[: space.size] = flatten(agent, space, split(observations[agent])[0])
    if not np.isfinite(padded).all():  # one look at all, as this happens at every step
        agent = spec.agents[int(np.isfinite(padded).all(axis=1).argmin())]
        raise ValueError(f"observation of agent {agent!r} has entries that are not finite: {observations[agent]}")
    return padded


def pad_masks(spec: EnvSpec, masks: Mapping[str, Any]) -> np.ndarray:
    """bool [N, A]. A mask of None allows all of the agent's actions; agents left out get action 0 only.

    Raises ValueError for a mask of the wrong length, or one that allows nothing.
    """
    padded = np.zeros((spec.n_agents, spec.max_actions), dtype=bool)
    for row, agent, count in zip(padded, spec.agents, spec.n_actions, strict=True):
        mask = masks.get(agent, False)
        if mask is None:
            row[:count] = True
        elif mask is False:
            row[0] = True
        else:
            array = np.asarray(mask)
            if array.shape != (count,):
                raise ValueError(f"action mask of agent {agent!r} has shape {array.shape}; it has {count} actions")
            row[:count] = array
    if not padded.any(axis=1).all():
        agent = spec.agents[int(padded.any(axis=1).argmin())]
        raise ValueError(
            f"action mask of agent {agent!r} allows no action, but the agent is still in the game; at least one "
            "action must be legal"
        )
    return padded
