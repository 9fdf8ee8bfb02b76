"""Padding of each agent's observations and action masks to arrays of equal size.

Shapes: N agents, O observation features and A actions (both of the largest agent).
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
    """Describe an observation space, or the observation inside a Dict that also has an action mask.

    Args:
        agent: Name of the agent, for error messages.
        space: Observation space of the agent.

    Returns:
        The description of the space.

    Raises:
        ValueError: The space has no fixed number of features.
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


def split_observation(observation: Any) -> tuple[Any, Any]:
    """Split a Dict observation into the observation itself and its action mask (None if it has none)."""
    if type(observation) is np.ndarray or not isinstance(observation, Mapping):  # the first is much faster
        return observation, None
    inner = [key for key in OBSERVATION_KEYS if key in observation]
    return observation[inner[0]] if inner else observation, observation.get(MASK_KEY)


def flatten_observation(agent: str, spec: SpaceSpec, observation: Any) -> np.ndarray:
    """Flatten one observation.

    Args:
        agent: Name of the agent, for error messages.
        spec: Observation space of the agent.
        observation: Observation without action mask.

    Returns:
        Features, [spec.size]; one-hot for a Discrete space.

    Raises:
        ValueError: The observation is not in the space.
    """
    array = _numbers("observation", agent, observation, spec.shape)
    if spec.kind != "Discrete":
        return array if array.ndim == 1 else array.reshape(-1)
    value, allowed = array.item(), range(spec.start, spec.start + spec.size)
    if value not in allowed:
        raise ValueError(
            f"observation of agent {agent!r} is {value}, but its Discrete space has the integers from {spec.start} to "
            f"{allowed[-1]}"
        )
    return np.eye(spec.size, dtype=np.float32)[int(value) - spec.start]


def pad_observations(spec: EnvSpec, observations: Mapping[str, Any]) -> np.ndarray:
    """Flatten and pad the observations of all agents.

    Args:
        spec: Specification of the environment.
        observations: Observation of each agent, with or without an action mask. Agents may be absent.

    Returns:
        float32 [N, O], with zeros for absent agents and after the features of smaller ones.

    Raises:
        ValueError: An observation is not in its space or contains numbers that are not finite.
    """
    padded = np.zeros((spec.n_agents, spec.max_observation), dtype=np.float32)
    for row, agent, space in zip(padded, spec.agents, spec.observations, strict=True):
        if agent in observations:
            row[: space.size] = flatten_observation(agent, space, split_observation(observations[agent])[0])
    if not np.isfinite(padded).all():  # check all agents at once, because this runs at every step
        agent = spec.agents[int(np.isfinite(padded).all(axis=1).argmin())]
        raise ValueError(
            f"observation of agent {agent!r} contains numbers that are not finite in float32: {observations[agent]}"
        )
    return padded


def pad_action_masks(spec: EnvSpec, masks: Mapping[str, Any]) -> np.ndarray:
    """Pad the action masks of all agents.

    Args:
        spec: Specification of the environment.
        masks: Action mask of each agent; None allows all of the agent's actions. Agents may be absent.

    Returns:
        bool [N, A]; only action 0 is legal for absent agents.

    Raises:
        ValueError: A mask has the wrong length, holds other values than 0 and 1, or allows no action.
    """
    padded = np.zeros((spec.n_agents, spec.max_actions), dtype=np.float32)
    for row, agent, n_actions in zip(padded, spec.agents, spec.n_actions, strict=True):
        if agent not in masks:
            row[0] = 1
        elif masks[agent] is None:
            row[:n_actions] = 1
        else:
            row[:n_actions] = _numbers("action mask", agent, masks[agent], (n_actions,))
    legal = padded == 1
    if not (legal == padded).all():  # check all agents at once, because this runs at every step
        agent = spec.agents[int((legal == padded).all(axis=1).argmin())]
        raise ValueError(
            f"action mask of agent {agent!r} is {masks[agent]}; it must be 1 for each legal action and 0 for the others"
        )
    if not legal.any(axis=1).all():
        agent = spec.agents[int(legal.any(axis=1).argmin())]
        raise ValueError(
            f"action mask of agent {agent!r} allows no action, but the agent is still in the game; allow at least one"
        )
    return legal


def _numbers(name: str, agent: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return an agent's value as an array of numbers, checked to have this shape."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):  # a ragged list, or a tensor on a GPU or with a gradient
        array = np.empty((), dtype=object)
    if array.shape != shape or array.dtype.kind not in "biuf":
        keys = f" with the keys {list(value)}" if isinstance(value, Mapping) else ""
        raise ValueError(
            f"{name} of agent {agent!r} is a {type(value).__name__}{keys} of shape {array.shape} and type "
            f"{array.dtype}; expected numbers of shape {shape}"
        )
    return array
