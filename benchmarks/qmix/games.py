"""Games of the QMIX benchmarks, and a wrapper that resets each episode with the next seed of a list.

Shapes: N agents, O observation features.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv
from pettingzoo.utils import BaseParallelWrapper


class TeamGame(ParallelEnv[str, np.ndarray, int]):
    """A game of equal agents that all receive the same reward; after the last step all agents terminate.

    Args:
        agents: Number of agents.
        observations: Observation features of each agent.
        actions: Number of actions of each agent.
        state: Number of state features.
        steps: Length of an episode.
    """

    def __init__(self, agents: int, observations: int, actions: int, state: int, steps: int) -> None:
        self.metadata = {"name": f"{type(self).__name__.lower()}_v0"}
        self.possible_agents = [f"agent_{index}" for index in range(agents)]
        self.agents: list[str] = []
        self.step_number = 0
        """Steps taken in the current episode."""
        self._steps = steps
        self._action_space = spaces.Discrete(actions)
        self._observation_space = spaces.Box(0.0, 1.0, (observations,), np.float32)
        self.state_space = spaces.Box(0.0, 1.0, (state,), np.float32)
        self._mask = np.ones(actions, np.int8)

    def observe(self) -> np.ndarray:
        """Return the observations of all agents, a new float32 array [N, O]."""
        raise NotImplementedError

    def transition(self, actions: list[int]) -> float:
        """Apply the actions of all agents and return the team reward."""
        raise NotImplementedError

    def observation_space(self, agent: str) -> spaces.Space:
        """Return the observation space of an agent."""
        return self._observation_space

    def action_space(self, agent: str) -> spaces.Space:
        """Return the action space of an agent."""
        return self._action_space

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        """Start an episode."""
        self.agents, self.step_number = list(self.possible_agents), 0
        return self._observations_and_infos()

    def step(self, actions: dict[str, int]) -> tuple[dict, dict, dict, dict, dict]:
        """Take one step."""
        agents = self.possible_agents
        reward = self.transition([int(actions[agent]) for agent in agents])
        self.step_number += 1
        terminated = self.step_number == self._steps
        if terminated:
            self.agents = []
        observations, infos = self._observations_and_infos()
        terminations, truncations = dict.fromkeys(agents, terminated), dict.fromkeys(agents, False)
        return observations, dict.fromkeys(agents, reward), terminations, truncations, infos

    def _observations_and_infos(self) -> tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]:
        infos = {agent: {"action_mask": self._mask.copy()} for agent in self.possible_agents}
        return dict(zip(self.possible_agents, self.observe(), strict=True)), infos


class Idle(TeamGame):
    """A game whose steps cost no time: observations are constant, rewards are 0, and actions have no effect.

    The state is the concatenation of all observations.

    Args:
        agents: Number of agents.
        observations: Observation features of each agent.
        actions: Number of actions of each agent.
        steps: Length of an episode.
    """

    def __init__(self, agents: int = 13, observations: int = 16, actions: int = 10, steps: int = 8) -> None:
        super().__init__(agents, observations, actions, agents * observations, steps)
        self._observations = np.random.default_rng(0).random((agents, observations), np.float32)
        self._mask[actions // 2 :: 2] = 0

    def observe(self) -> np.ndarray:
        """Return a copy of the constant observations."""
        return self._observations.copy()

    def state(self) -> np.ndarray:
        """Return all observations as one vector."""
        return self._observations.ravel().copy()

    def transition(self, actions: list[int]) -> float:
        """Do nothing."""
        return 0.0


class TwoStep(TeamGame):
    """The example of Rashid et al. (2018, section 5.1).

    The first agent's first action selects the payoff matrix of the second step. One matrix pays 7 for all actions. The
    other pays 0, 1 or 8, which no sum of two values can represent. The best return is 8.
    """

    PAYOFFS = ((7.0, 7.0, 7.0), (0.0, 1.0, 8.0))  # by matrix, then by the number of agents that choose action 1

    def __init__(self) -> None:
        super().__init__(agents=2, observations=3, actions=2, state=3, steps=2)
        self._matrix = 0

    def observe(self) -> np.ndarray:
        """Return the state for both agents."""
        return np.tile(self.state(), (2, 1))

    def state(self) -> np.ndarray:
        """Return the position in the game, one-hot: the first step, or one of the two matrices."""
        return np.eye(3, dtype=np.float32)[0 if self.step_number == 0 else 1 + self._matrix]

    def transition(self, actions: list[int]) -> float:
        """Select the matrix in the first step and pay in the second."""
        if self.step_number == 0:
            self._matrix = actions[0]
            return 0.0
        return self.PAYOFFS[self._matrix][sum(actions)]


class Seeded(BaseParallelWrapper):
    """Resets each episode with the next of `seeds`, so that all implementations start from the same states."""

    def __init__(self, env: ParallelEnv, seeds: Iterable[int]) -> None:
        super().__init__(env)
        self._seeds = iter(seeds)

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        """Start an episode with the next seed; the `seed` argument is ignored."""
        return self.env.reset(seed=next(self._seeds), options=options)
