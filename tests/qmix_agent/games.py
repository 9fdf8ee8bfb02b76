"""Small cooperative games with known properties."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv

ParallelStep = tuple[dict, dict, dict, dict, dict]


@dataclass(frozen=True)
class Outcome:
    """Result of one step for the whole team."""

    reward: float
    terminated: bool = False
    truncated: bool = False


class Game(ParallelEnv):
    """Base class of the games: subclasses define observations, rewards and the end of an episode.

    Args:
        n_actions: Number of actions of each agent.
        n_features: Number of observation features of every agent.
    """

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
        self.start_episode()
        return self.observe(), self.infos()

    def step(self, actions: dict[str, int]) -> ParallelStep:
        assert set(actions) == set(self.agents), "exactly the agents that have not left must act"
        self.time += 1
        outcome = self.transition(actions)
        result = (
            self.observe(),
            dict.fromkeys(self.agents, outcome.reward),
            dict.fromkeys(self.agents, outcome.terminated),
            dict.fromkeys(self.agents, outcome.truncated),
            self.infos(),
        )
        if outcome.terminated or outcome.truncated:
            self.agents = []
        return result

    def start_episode(self) -> None:
        """Set up an episode."""

    def observe(self) -> dict[str, Any]:
        raise NotImplementedError

    def infos(self) -> dict[str, dict[str, Any]]:
        return {agent: {} for agent in self.agents}

    def transition(self, actions: dict[str, int]) -> Outcome:
        raise NotImplementedError


class TwoStep(Game):
    """Rashid et al. 2018, section 5.1: agent_0's first action selects the payoff matrix of the second step.

    After action 0, everything pays 7. After action 1 the matrix is ((0, 1), (1, 8)), which no sum can represent. The
    best return is 8.
    """

    def __init__(self) -> None:
        super().__init__((2, 2), 3)
        self.state_space = spaces.Box(0.0, 1.0, (3,), np.float32)

    def start_episode(self) -> None:
        self.position = 0

    def observe(self) -> dict[str, Any]:
        return {agent: np.eye(3, dtype=np.float32)[self.position] for agent in self.agents}

    def state(self) -> np.ndarray:
        return np.eye(3, dtype=np.float32)[self.position]

    def transition(self, actions: dict[str, int]) -> Outcome:
        if self.time == 1:
            self.position = 1 + int(actions["agent_0"])
            return Outcome(0.0)
        if self.position == 1:
            return Outcome(7.0, terminated=True)
        return Outcome((0.0, 1.0, 8.0)[sum(actions.values())], terminated=True)


class Matrix(Game):
    """One step without information: agent_0's action is the row of the payoffs, agent_1's the column."""

    def __init__(self, payoffs: tuple[tuple[float, ...], ...]) -> None:
        super().__init__((len(payoffs), len(payoffs[0])), 1)
        self.payoffs = payoffs

    def observe(self) -> dict[str, Any]:
        return {agent: np.ones(1, np.float32) for agent in self.agents}

    def transition(self, actions: dict[str, int]) -> Outcome:
        return Outcome(self.payoffs[actions["agent_0"]][actions["agent_1"]], terminated=True)


class Memory(Game):
    """Each agent observes a bit at reset only; two blank steps later it is rewarded for repeating it. No state()."""

    def __init__(self) -> None:
        super().__init__((2, 2), 2)

    def start_episode(self) -> None:
        self.bits = self.rng.integers(0, 2, 2)

    def observe(self) -> dict[str, Any]:
        shown = self.bits * 2 - 1 if self.time == 0 else np.zeros(2)
        return {agent: np.array([shown[index], self.time / 3], np.float32) for index, agent in enumerate(self.agents)}

    def transition(self, actions: dict[str, int]) -> Outcome:
        if self.time < 3:
            return Outcome(0.0)
        correct = sum(int(actions[agent] == bit) for agent, bit in zip(self.possible_agents, self.bits, strict=True))
        return Outcome(correct / 2, terminated=True)


class Ragged(Game):
    """Agents with 3, 5 and 1 actions, observations of different sizes, and action masks in the infos.

    The seed determines the length of an episode, and whether it is terminated or truncated. The reward is the sum of
    the actions. An illegal action is an error.
    """

    def __init__(self, n_actions: tuple[int, ...] = (3, 5, 1)) -> None:
        super().__init__(n_actions, 2)
        for index, agent in enumerate(self.possible_agents):  # sizes 1, 2, 3, ...
            self.observation_spaces[agent] = spaces.Box(-1.0, 1.0, (index + 1,), np.float32)
        self.state_space = spaces.Box(0.0, 10.0, (4,), np.float32)

    def start_episode(self) -> None:
        self.total = 0.0
        self.length, self.terminates = int(self.rng.integers(2, 6)), bool(self.rng.integers(0, 2))
        self.draw_masks()

    def draw_masks(self) -> None:
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

    def infos(self) -> dict[str, dict[str, Any]]:
        return {
            agent: {"action_mask": self.masks[agent], "own": float(index), "team": self.total, "name": "text"}
            for index, agent in enumerate(self.agents)
        }

    def transition(self, actions: dict[str, int]) -> Outcome:
        for agent, action in actions.items():
            assert self.masks[agent][action] == 1, f"{agent} took illegal action {action}"
        self.total = float(sum(actions.values()))
        self.draw_masks()
        over = self.time == self.length
        return Outcome(self.total, terminated=over and self.terminates, truncated=over and not self.terminates)


class DictMasks(Ragged):
    """Ragged with the masks in Dict observations, PettingZoo's older convention, and none in the infos."""

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

    def infos(self) -> dict[str, dict[str, Any]]:
        return {agent: {} for agent in self.agents}


class LeavesEarly(Ragged):
    """Ragged in which agent_0 terminates after the first step; the others play three steps and are truncated."""

    def start_episode(self) -> None:
        super().start_episode()
        self.length, self.terminates = 3, False

    def step(self, actions: dict[str, int]) -> ParallelStep:
        observations, rewards, terminations, truncations, infos = super().step(actions)
        if "agent_0" in terminations:
            terminations["agent_0"] = True
            self.agents.remove("agent_0")
        return observations, rewards, terminations, truncations, infos


class Meet(Game):
    """Two walkers on a line of five must both reach a landmark. No state() and no masks."""

    def __init__(self) -> None:
        super().__init__((3, 3), 2)

    def start_episode(self) -> None:
        self.places, self.landmark = self.rng.integers(0, 5, 2), int(self.rng.integers(0, 5))

    def observe(self) -> dict[str, Any]:
        return {
            agent: np.array([place / 4, self.landmark / 4], np.float32)
            for agent, place in zip(self.agents, self.places, strict=True)
        }

    def transition(self, actions: dict[str, int]) -> Outcome:
        moves = np.array([actions[agent] - 1 for agent in self.possible_agents])
        self.places = np.clip(self.places + moves, 0, 4)
        return Outcome(-float(np.abs(self.places - self.landmark).sum()) / 8, truncated=self.time == 5)


class Archiving(Ragged):
    """Ragged with lasting state: the lengths of all episodes, in state_dict and load_state_dict."""

    def __init__(self) -> None:
        super().__init__()
        self.lengths: list[int] = []

    def transition(self, actions: dict[str, int]) -> Outcome:
        outcome = super().transition(actions)
        if outcome.terminated or outcome.truncated:
            self.lengths.append(self.time)
        return outcome

    def state_dict(self) -> dict[str, Any]:
        return {"lengths": np.array(self.lengths, dtype=np.int64), "note": ("a", 1)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert isinstance(state["lengths"], np.ndarray)
        assert state["note"] == ("a", 1)
        self.lengths = state["lengths"].tolist()
