"""What passes between the parts.

Letters of shapes: B episodes, T steps, N agents, O observation features (the largest agent's), A actions (the largest
agent's), S state features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class SpaceSpec:
    """An observation space in plain values, so that a checkpoint can hold it."""

    kind: str
    """Box, MultiBinary or Discrete."""
    shape: tuple[int, ...]
    """Of one observation; () for Discrete."""
    size: int
    """Features after flattening; a Discrete observation becomes one-hot."""
    start: int = 0
    """Smallest value of a Discrete space."""


@dataclass(frozen=True)
class EnvSpec:
    """What an environment looks like to the agent. Two environments of equal spec can share a checkpoint."""

    agents: tuple[str, ...]
    observations: tuple[SpaceSpec, ...]
    """One for each agent."""
    n_actions: tuple[int, ...]
    """One for each agent."""
    action_starts: tuple[int, ...]
    """Smallest action of each agent's Discrete space."""
    n_state: int
    """S."""
    has_state: bool
    """Whether the environment has a state(); otherwise all observations are the state."""

    @property
    def n_agents(self) -> int:
        """N."""
        return len(self.agents)

    @property
    def max_observation(self) -> int:
        """O."""
        return max(space.size for space in self.observations)

    @property
    def max_actions(self) -> int:
        """A."""
        return max(self.n_actions)

    def differences(self, other: EnvSpec) -> list[str]:
        """Names of the fields that are not equal, with both values."""
        return [
            f"{name}: {getattr(self, name)} against {getattr(other, name)}"
            for name in self.__dataclass_fields__
            if getattr(self, name) != getattr(other, name)
        ]


@dataclass(frozen=True)
class View:
    """What the team sees at one moment, padded to the largest agent."""

    observations: np.ndarray  # float32 [N, O]
    action_masks: np.ndarray  # bool [N, A]; of an agent that has left, action 0 only
    state: np.ndarray  # float32 [S]


@dataclass(frozen=True)
class Episode:
    """One whole episode of T steps. Observations, states and masks have T + 1: the last is where the last step led."""

    observations: np.ndarray  # float32 [T+1, N, O]
    states: np.ndarray  # float32 [T+1, S]
    action_masks: np.ndarray  # bool [T+1, N, A]
    actions: np.ndarray  # int64 [T, N], indices from 0
    rewards: np.ndarray  # float32 [T], the team's, once
    terminated: np.ndarray  # bool [T]; a last step that is not terminated was truncated

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def total_reward(self) -> float:
        """Undiscounted return."""
        return float(self.rewards.sum(dtype=np.float64))


@dataclass(frozen=True)
class Batch:
    """Episodes padded with zeros to the longest, T steps."""

    observations: torch.Tensor  # float32 [B, T+1, N, O]
    states: torch.Tensor  # float32 [B, T+1, S]
    action_masks: torch.Tensor  # bool [B, T+1, N, A]
    actions: torch.Tensor  # int64 [B, T, N]
    rewards: torch.Tensor  # float32 [B, T]
    terminated: torch.Tensor  # float32 [B, T]
    filled: torch.Tensor  # float32 [B, T], 1 where a step was played


@dataclass(frozen=True)
class Evaluation:
    """Returns of greedy episodes."""

    mean: float
    standard_error: float
    """Of the mean; nan for a single episode."""
    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    action_counts: dict[str, tuple[int, ...]]
    """How often each agent took each of its actions, the first being its Discrete space's smallest."""


Metrics = dict[str, Any]
"""A row of the log: numbers, or None where there is nothing to tell yet."""
