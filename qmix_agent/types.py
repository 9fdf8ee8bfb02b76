"""Data classes that pass between the modules of the package.

Shapes: B episodes, T steps, N agents, O observation features and A actions (both of the largest agent), S state
features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class SpaceSpec:
    """An observation space as plain values that a checkpoint can hold."""

    kind: str
    """Box, MultiBinary or Discrete."""
    shape: tuple[int, ...]
    """Shape of one observation; () for Discrete."""
    size: int
    """Number of features after flattening; a Discrete observation becomes one-hot."""
    start: int = 0
    """Smallest value of a Discrete space."""


@dataclass(frozen=True)
class Proposal:
    """What an environment proposes to every agent: an amount of what its actions do."""

    feature: int
    """Index of the observation feature that holds the proposed amount."""
    amounts: tuple[float, ...]
    """Amount of each of the A actions."""

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, self.amounts)):
            raise ValueError(f"amounts of actions must be finite, got {self.amounts}")

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any] | None) -> Proposal | None:
        """Return the proposal that `dataclasses.asdict` turned into `fields`; None stays None."""
        return None if fields is None else cls(int(fields["feature"]), tuple(map(float, fields["amounts"])))


@dataclass(frozen=True)
class EnvSpec:
    """The agents, spaces and state size of an environment. Environments of equal spec can share a checkpoint."""

    agents: tuple[str, ...]
    """Names of all possible agents."""
    observations: tuple[SpaceSpec, ...]
    """Observation space of each agent."""
    n_actions: tuple[int, ...]
    """Number of actions of each agent."""
    action_starts: tuple[int, ...]
    """Smallest action of each agent's Discrete space."""
    n_state: int
    """Number of state features, S."""
    has_state: bool
    """Whether the environment has a state() method; otherwise the concatenated observations are the state."""
    proposal: Proposal | None = None
    """What the environment proposes; None if it does not."""

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> EnvSpec:
        """Return the spec that `dataclasses.asdict` turned into `fields`."""
        observations = tuple(SpaceSpec(**space) for space in fields["observations"])
        return cls(**{**fields, "observations": observations, "proposal": Proposal.from_dict(fields["proposal"])})

    @property
    def n_agents(self) -> int:
        """Number of agents, N."""
        return len(self.agents)

    @cached_property  # read at every step
    def max_observation(self) -> int:
        """Observation features of the largest agent, O; 1 (a zero) if no agent observes anything."""
        return max(1, *(space.size for space in self.observations))

    @cached_property
    def max_actions(self) -> int:
        """Actions of the largest agent, A."""
        return max(self.n_actions)

    def require_equal(self, other: EnvSpec) -> None:
        """Raise ValueError that lists the differing fields unless `other`, an environment's spec, equals this one."""
        differences = [
            f"{name} is {getattr(other, name)}, expected {getattr(self, name)}"
            for name in self.__dataclass_fields__
            if getattr(self, name) != getattr(other, name)
        ]
        if differences:
            raise ValueError(f"the environment does not match this agent: {'; '.join(differences)}")


@dataclass(frozen=True)
class JointObservation:
    """Observations, action masks and state at one moment, padded to the largest agent."""

    observations: np.ndarray  # float32 [N, O]
    action_masks: np.ndarray  # bool [N, A]; only action 0 for an absent agent
    state: np.ndarray  # float32 [S]
    present: np.ndarray  # bool [N]; an agent is absent if it has left, or does not play in this episode


@dataclass(frozen=True)
class StepResult:
    """Outcome of one environment step for the whole team."""

    observation: JointObservation
    """Joint observation after the step. It is valid after a truncation, because its value is bootstrapped from."""
    reward: float
    """Team reward."""
    terminated: bool
    """Whether the episode ended in a terminal state."""
    done: bool
    """Whether the episode is over; done but not terminated means truncated."""


@dataclass(frozen=True)
class Episode:
    """One whole episode of T steps. Observations, states and masks have T + 1 entries: one more after the last step."""

    observations: np.ndarray  # float32 [T+1, N, O]
    states: np.ndarray  # float32 [T+1, S]
    action_masks: np.ndarray  # bool [T+1, N, A]
    present: np.ndarray  # bool [T+1, N]
    actions: np.ndarray  # int64 [T, N], indices from 0
    rewards: np.ndarray  # float32 [T], team reward
    terminated: np.ndarray  # bool [T]; a last step that is not terminated was truncated

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def total_reward(self) -> float:
        """Undiscounted return."""
        return float(self.rewards.sum(dtype=np.float64))


@dataclass(frozen=True)
class Moments:
    """What a mixer sees of B x T moments besides the values of the agents."""

    states: torch.Tensor  # float32 [B, T, S]
    observations: torch.Tensor  # float32 [B, T, N, O]
    present: torch.Tensor  # float32 [B, T, N], 1 for the agents in the game and 0 for absent ones


@dataclass(frozen=True)
class Batch:
    """Episodes padded with zeros to the longest of them, T steps."""

    observations: torch.Tensor  # float32 [B, T+1, N, O]
    states: torch.Tensor  # float32 [B, T+1, S]
    action_masks: torch.Tensor  # bool [B, T+1, N, A]
    present: torch.Tensor  # float32 [B, T+1, N]
    actions: torch.Tensor  # int64 [B, T, N]
    rewards: torch.Tensor  # float32 [B, T]
    terminated: torch.Tensor  # float32 [B, T]
    filled: torch.Tensor  # float32 [B, T], 1 for played steps and 0 for padding

    @property
    def before(self) -> Moments:
        """The moments before each step."""
        return Moments(self.states[:, :-1], self.observations[:, :-1], self.present[:, :-1])

    @property
    def after(self) -> Moments:
        """The moments after each step."""
        return Moments(self.states[:, 1:], self.observations[:, 1:], self.present[:, 1:])


@dataclass(frozen=True)
class Evaluation:
    """Results of greedy episodes."""

    mean: float
    """Mean undiscounted return."""
    standard_error: float
    """Standard error of the mean; nan for a single episode."""
    returns: tuple[float, ...]
    """Undiscounted return of each episode."""
    lengths: tuple[int, ...]
    """Number of steps of each episode."""
    action_counts: dict[str, tuple[int, ...]]
    """How often each agent took each of its actions, in the order of its Discrete space."""


MetricsRow = dict[str, Any]
"""Metrics of one training episode: numbers, or None where a metric has no value yet."""
