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
        return {agent: np.eye(3, dtype=np.float32)[self.where] for agent in self.agents}

    def state(self) -> np.ndarray:
        return np.eye(3, dtype=np.float32)[self.where]

    def play(self, actions: dict[str, int]) -> tuple[float, bool, bool]:
        if self.time == 1:
            self.where = 1 + int(actions["agent_0"])
            return 0.0, False, False
        if self.where == 1:
            return 7.0, True, False
        return (0.0, 1.0, 8.0)[sum(actions.values())], True, False


class Matrix(Game):
    """One step, and nothing to see: agent_0's action is the row, agent_1's the column."""

    def __init__(self, payoffs: tuple[tuple[float, ...], ...]) -> None:
        super().__init__((len(payoffs), len(payoffs[0])), 1)
        self.payoffs = payoffs

    def observe(self) -> dict[str, Any]:
        return {agent: np.ones(1, np.float32) for agent in self.agents}

    def play(self, actions: dict[str, int]) -> tuple[float, bool, bool]:
        return self.payoffs[actions["agent_0"]][actions["agent_1"]], True, False


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


class Ragged(Game):
    """Agents with 3, 5 and 1 actions, masks in the infos, and any length, ending either way, as the seed says.

    Pays for the sum of the actions. An illegal action is an error.
    """

    def __init__(self, n_actions: tuple[int, ...] = (3, 5, 1)) -> None:
        super().__init__(n_actions, 2)
        for index, agent in enumerate(self.possible_agents):  # sizes 1, 2, 3, ...
            self.observation_spaces[agent] = spaces.Box(-1.0, 1.0, (index + 1,), np.float32)
        self.state_space = spaces.Box(0.0, 10.0, (4,), np.float32)

    def begin(self) -> None:
        self.total = 0.0
        self.length, self.ends = int(self.rng.integers(2, 6)), bool(self.rng.integers(0, 2))
        self.draw()

    def draw(self) -> None:
        self.masks = {}
        for agent in self.agents:
            mask = self.rng.integers(0, 2, int(self.action_spaces[agent].n)).astype(np.int8)
            mask[self.rng.integers(0, len(mask))] = 1
            self.masks[agent] = mask

    def observe(self) -> dict[str, Any]:
        sizes = {agent: index + 1 for index, agent in enumerate(self.possible_agents)}
        return {agent: np.full(sizes[agent], self.time / 10, np.float32) for agent in self.agents}

    def state(self) -> np.ndarray:
        return np.array([self.time, self.length, self.total / 10, 1.0], np.float32)

    def tell(self) -> dict[str, dict[str, Any]]:
        return {
            agent: {"action_mask": self.masks[agent], "own": float(index), "team": self.total, "name": "text"}
            for index, agent in enumerate(self.agents)
        }

    def play(self, actions: dict[str, int]) -> tuple[float, bool, bool]:
        for agent, action in actions.items():
            assert self.masks[agent][action] == 1, f"{agent} took illegal action {action}"
        self.total = float(sum(actions.values()))
        self.draw()
        over = self.time == self.length
        return self.total, over and self.ends, over and not self.ends


class DictMasks(Ragged):
    """The same with the masks beside the observations, PettingZoo's classic way. No masks in the infos."""

    def __init__(self) -> None:
        super().__init__()
        for agent, space in self.observation_spaces.items():
            mask = spaces.Box(0, 1, (int(self.action_spaces[agent].n),), np.int8)
            self.observation_spaces[agent] = spaces.Dict({"observation": space, "action_mask": mask})

    def observe(self) -> dict[str, Any]:
        return {
            agent: {"observation": observation, "action_mask": self.masks[agent]}
            for agent, observation in super().observe().items()
        }

    def tell(self) -> dict[str, dict[str, Any]]:
        return {agent: {} for agent in self.agents}


class LeavesEarly(Ragged):
    """agent_0 terminates after the first step; the others play three, and are cut off."""

    def begin(self) -> None:
        super().begin()
        self.length, self.ends = 3, False

    def step(self, actions: dict[str, int]) -> Result:
        observations, rewards, terminations, truncations, infos = super().step(actions)
        if "agent_0" in terminations:
            terminations["agent_0"] = True
            self.agents.remove("agent_0")
        return observations, rewards, terminations, truncations, infos


class Meet(Game):
    """Two walkers on a line of five see where they and a landmark are; both must stand on it. No state(), no masks."""

    def __init__(self) -> None:
        super().__init__((3, 3), 2)

    def begin(self) -> None:
        self.places, self.landmark = self.rng.integers(0, 5, 2), int(self.rng.integers(0, 5))

    def observe(self) -> dict[str, Any]:
        return {
            agent: np.array([place / 4, self.landmark / 4], np.float32)
            for agent, place in zip(self.agents, self.places, strict=True)
        }

    def play(self, actions: dict[str, int]) -> tuple[float, bool, bool]:
        moves = np.array([actions[agent] - 1 for agent in self.possible_agents])
        self.places = np.clip(self.places + moves, 0, 4)
        return -float(np.abs(self.places - self.landmark).sum()) / 8, False, self.time == 5


class Archiving(Ragged):
    """Remembers every episode's length, over all episodes, and can be asked for it and told it."""

    def __init__(self) -> None:
        super().__init__()
        self.lengths: list[int] = []

    def play(self, actions: dict[str, int]) -> tuple[float, bool, bool]:
        result = super().play(actions)
        if result[1] or result[2]:
            self.lengths.append(self.time)
        return result

    def state_dict(self) -> dict[str, Any]:
        return {"lengths": np.array(self.lengths, dtype=np.int64), "note": ("a", 1)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert isinstance(state["lengths"], np.ndarray)
        assert state["note"] == ("a", 1)
        self.lengths = state["lengths"].tolist()
