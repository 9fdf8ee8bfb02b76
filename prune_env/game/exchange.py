"""What agents exchange with the environment: spaces, observations and infos, each as a dictionary by agent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from ..common.warn import warn
from ..pruning import PruningGroup
from .observation import Observer
from .transition import RoundState

Spaces = dict[str, spaces.Space]


def agent_spaces(groups: Sequence[PruningGroup], observer: Observer) -> tuple[Spaces, Spaces]:
    """Return new observation spaces and new action spaces."""
    shape, actions = (len(observer.names),), len(observer.rates)
    observations: Spaces = {group.name: spaces.Box(0.0, 1.0, shape, np.float32) for group in groups}
    return observations, {group.name: spaces.Discrete(actions) for group in groups}


def observations(agents: Sequence[str], state: RoundState) -> dict[str, np.ndarray]:
    """Return every agent's observation as a new array."""
    return dict(zip(agents, state.observations.copy(), strict=True))


def infos(agents: Sequence[str], state: RoundState, totals: dict[str, float]) -> dict[str, dict[str, Any]]:
    """Return every agent's info: a new mask, the applied rate and the totals of the network."""
    return {
        agent: {"action_mask": mask, "applied_rate": float(rate), **totals}
        for agent, mask, rate in zip(agents, state.masks.copy(), state.last_rates, strict=True)
    }


def reset_options(options: Mapping[str, Any] | None, *known: str) -> dict[str, Any]:
    """Return the known options of a reset. Warn of others: PettingZoo's own tests pass some, so they are no error."""
    given = dict(options or {})
    if unknown := [name for name in given if name not in known]:
        warn(f"option {unknown[0]!r} of reset is unknown and has no effect; the options are {', '.join(known)}")
    return {name: given[name] for name in known if name in given}
