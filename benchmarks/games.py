"""The games of the QMIX benchmarks, and a wrapper that gives each episode the next seed of a list."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv
from pettingzoo.utils import BaseParallelWrapper


class Idle(ParallelEnv[str, np.ndarray, int]):
    """A game that costs no time: whatever the agents do, they see the same numbers and get 0.

    agents, observations, actions   how many; the state is all observations in a row
    steps                           of an episode, which then terminates
    """

    def __init__(self, agents: int = 13, observations: int = 16, actions: int = 10, steps: int = 8) -> None:
        self.metadata = {"name": "idle_v0"}
        self.possible_agents = [f"agent_{index}" for index in range(agents)]
        self.agents: list[str] = []
        self._steps, self._step = steps, 0
        rng = np.random.default_rng(0)
        self._seen = rng.random((agents, observations), np.float32)
        self._mask = np.ones(actions, np.int8)
        self._mask[actions // 2 :: 2] = 0
        self._action_space = spaces.Discrete(actions)
        self._observation_space = spaces.Box(0.0, 1.0, (observations,), np.float32)
        self.state_space = spaces.Box(0.0, 1.0, (agents * observations,), np.float32)

    def observation_space(self, agent: str) -> spaces.Space:
        return self._observation_space

    def action_space(self, agent: str) -> spaces.Space:
        return self._action_space

    def state(self) -> np.ndarray:
        return self._seen.ravel().copy()

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        self.agents, self._step = list(self.possible_agents), 0
        return self._view()

    def step(self, actions: dict[str, int]) -> tuple[dict, dict, dict, dict, dict]:
        self._step += 1
        over = self._step == self._steps
        everyone = self.possible_agents
        if over:
            self.agents = []
        observations, infos = self._view()
        rewards, ends, cuts = (
            dict.fromkeys(everyone, 0.0),
            dict.fromkeys(everyone, over),
            dict.fromkeys(everyone, False),
        )
        return observations, rewards, ends, cuts, infos

    def _view(self) -> tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]:
        rows = self._seen.copy()
        infos = {agent: {"action_mask": self._mask.copy()} for agent in self.possible_agents}
        return dict(zip(self.possible_agents, rows, strict=True)), infos


class Seeded(BaseParallelWrapper):
    """Every episode takes the next seed, whatever `reset` is told: all implementations meet the same starts."""

    def __init__(self, env: ParallelEnv, seeds: Iterable[int]) -> None:
        super().__init__(env)
        self._seeds = iter(seeds)

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        return self.env.reset(seed=next(self._seeds), options=options)
