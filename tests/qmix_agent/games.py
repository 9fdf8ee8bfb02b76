"""Small cooperative games with known answers."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv

Result = tuple[dict, dict, dict, dict, dict]


class Game(ParallelEnv):
    """A team of `n_actions` agents; subclasses say what is seen, what pays, and when it ends."""

    def __init__(self, n_actions: tuple[int, ...], n_features: int) -> None:
        self.possible_agents = [f"agent_{index}" for index in range(len(n_actions))]
        self.action_spaces = {
            agent: spaces.Discrete(count) for agent, count in zip(self.possible_agents, n_actions, strict=True)
        }
        self.observation_spaces = {
            agent: spaces.Box(-1.0, 1.0, (n_features,), np.float32) for agent in self.possible_agents
        }
        self.agents: list[str] = []

    def observation_space(self, agent: str) -> spaces.Space:
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space:
        return self.action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        self.rng = np.random.default_rng(seed)
        self.agents = list(self.possible_agents)
        self.time = 0
        self.begin()
        return self.observe(), self.tell()

    def step(self, actions: dict[str, int]) -> Result:
        assert set(actions) == set(self.agents), "exactly the agents that are still there act"
        self.time += 1
        reward, terminated, truncated = self.play(actions)
        result = (
            self.observe(),
            dict.fromkeys(self.agents, reward),
            dict.fromkeys(self.agents, terminated),
            dict.fromkeys(self.agents, truncated),
            self.tell(),
        )
        if terminated or truncated:
            self.agents = []
        return result

    def begin(self) -> None:
        """Sets up an episode."""

    def observe(self) -> dict[str, Any]:
        raise NotImplementedError

    def tell(self) -> dict[str, dict[str, Any]]:
        return {agent: {} for agent in self.agents}

    def play(self, actions: dict[str, int]) -> tuple[float, bool, bool]:
        raise NotImplementedError


class TwoStep(Game):
    """Rashid et al. 2018, section 5.1: agent_0's first action chooses the second step's matrix; 8 is the best return.

    Behind action 0 every choice pays 7. Behind action 1 it is ((0, 1), (1, 8)), which no sum can represent.
    """

    def __init__(self) -> None:
        super().__init__((2, 2), 3)
        self.state_space = spaces.Box(0.0, 1.0, (3,), np.float32)

    def begin(self) -> None:
        self.where = 0

    def observe(self) -> dict[str, Any]:
        return {agent: self.state() for agent in self.agents}

    def state(self) -> np.ndarray:
        return np.eye(3, dtype=np.float32)[self.where]

    def play(self, actions: dict[str, int]) -> tuple[float, bool, bool]:
        if self.time == 1:
            self.where = 1 + int(actions["agent_0"])
            return 0.0, False, False
        if self.where == 1:
            return 7.0, True, False
        return (0.0, 1.0, 8.0)[sum(actions.values())], True, False


class Memory(Game):
    """A bit for each agent is shown at reset only; two blank steps later, saying it back pays. No state()."""

    def __init__(self) -> None:
        super().__init__((2, 2), 2)

    def begin(self) -> None:
        self.bits = self.rng.integers(0, 2, 2)

    def observe(self) -> dict[str, Any]:
        shown = self.bits * 2 - 1 if self.time == 0 else np.zeros(2)
        return {agent: np.array([shown[index], self.time / 3], np.float32) for index, agent in enumerate(self.agents)}

    def play(self, actions: dict[str, int]) -> tuple[float, bool, bool]:
        if self.time < 3:
            return 0.0, False, False
        right = sum(int(actions[agent] == bit) for agent, bit in zip(self.possible_agents, self.bits, strict=True))
        return right / 2, True, False
