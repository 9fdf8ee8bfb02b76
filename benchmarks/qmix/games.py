"""The games of the QMIX benchmarks, and a wrapper that gives each episode the next seed of a list."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv
from pettingzoo.utils import BaseParallelWrapper


class TeamGame(ParallelEnv[str, np.ndarray, int]):
    """Equal agents that all see, and get, what `look` and `pay` say; all leave when the last step terminates."""

    def __init__(self, agents: int, observations: int, actions: int, state: int, steps: int) -> None:
        self.metadata = {"name": f"{type(self).__name__.lower()}_v0"}
        self.possible_agents = [f"agent_{index}" for index in range(agents)]
        self.agents: list[str] = []
        self._steps, self._step = steps, 0
        self._action_space = spaces.Discrete(actions)
        self._observation_space = spaces.Box(0.0, 1.0, (observations,), np.float32)
        self.state_space = spaces.Box(0.0, 1.0, (state,), np.float32)
        self._mask = np.ones(actions, np.int8)

    def look(self) -> np.ndarray:
        """A fresh float32 array [N, O]."""
        raise NotImplementedError

    def pay(self, actions: list[int]) -> float:
        """The team's reward for a step."""
        raise NotImplementedError

    def observation_space(self, agent: str) -> spaces.Space:
        return self._observation_space

    def action_space(self, agent: str) -> spaces.Space:
        return self._action_space

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        self.agents, self._step = list(self.possible_agents), 0
        return self._view()

    def step(self, actions: dict[str, int]) -> tuple[dict, dict, dict, dict, dict]:
        everyone = self.possible_agents
        reward = self.pay([int(actions[agent]) for agent in everyone])
        self._step += 1
        over = self._step == self._steps
        if over:
            self.agents = []
        observations, infos = self._view()
        ends, cuts = dict.fromkeys(everyone, over), dict.fromkeys(everyone, False)
        return observations, dict.fromkeys(everyone, reward), ends, cuts, infos

    def _view(self) -> tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]:
        infos = {agent: {"action_mask": self._mask.copy()} for agent in self.possible_agents}
        return dict(zip(self.possible_agents, self.look(), strict=True)), infos


class Idle(TeamGame):
    """A game that costs no time: whatever the agents do, they see the same numbers and get 0."""

    def __init__(self, agents: int = 13, observations: int = 16, actions: int = 10, steps: int = 8) -> None:
        """How many of each; the state is all observations in a row."""
        super().__init__(agents, observations, actions, agents * observations, steps)
        self._seen = np.random.default_rng(0).random((agents, observations), np.float32)
        self._mask[actions // 2 :: 2] = 0

    def look(self) -> np.ndarray:
        return self._seen.copy()

    def state(self) -> np.ndarray:
        return self._seen.ravel().copy()

    def pay(self, actions: list[int]) -> float:
        return 0.0


class TwoStep(TeamGame):
    """The example of Rashid et al. (2018, section 5.1): the first agent's first action chooses the matrix that follows.

    One pays 7 for anything. The other pays 0, 1 or 8: no sum of two values can represent it, and 8 is the best.
    """

    PAYOFFS = ((7.0, 7.0, 7.0), (0.0, 1.0, 8.0))  # by matrix, and by how many choose action 1

    def __init__(self) -> None:
        super().__init__(agents=2, observations=3, actions=2, state=3, steps=2)
        self._matrix = 0

    def look(self) -> np.ndarray:
        return np.tile(self.state(), (2, 1))

    def state(self) -> np.ndarray:
        """Which of the three moments it is, one-hot: the first step, or one of two matrices."""
        return np.eye(3, dtype=np.float32)[0 if self._step == 0 else 1 + self._matrix]

    def pay(self, actions: list[int]) -> float:
        if self._step == 0:
            self._matrix = actions[0]
            return 0.0
        return self.PAYOFFS[self._matrix][sum(actions)]


class Seeded(BaseParallelWrapper):
    """Every episode takes the next seed, whatever `reset` is told: all implementations meet the same starts."""

    def __init__(self, env: ParallelEnv, seeds: Iterable[int]) -> None:
        super().__init__(env)
        self._seeds = iter(seeds)

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        return self.env.reset(seed=next(self._seeds), options=options)
