"""What agents exchange with the environment: spaces, observations and infos, each as a dictionary by agent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from .transition import RoundState


def agent_spaces(
    agents: Sequence[str], features: int, actions: int
) -> tuple[dict[str, spaces.Space], dict[str, spaces.Space]]:
    """Return new observation spaces and new action spaces."""
    observations: dict[str, spaces.Space] = {agent: spaces.Box(0.0, 1.0, (features,), np.float32) for agent in agents}
    return observations, {agent: spaces.Discrete(actions) for agent in agents}


def observations(agents: Sequence[str], state: RoundState) -> dict[str, np.ndarray]:
    """Return every agent's observation as a new array."""
    return dict(zip(agents, state.observations.copy(), strict=True))


def infos(agents: Sequence[str], state: RoundState, totals: dict[str, float]) -> dict[str, dict[str, Any]]:
    """Return every agent's info: a new mask, the applied rate and the totals of the network."""
    return {
        agent: {"action_mask": mask, "applied_rate": float(rate), **totals}
        for agent, mask, rate in zip(agents, state.masks.copy(), state.last_rates, strict=True)
    }
