"""Playing one episode: a PettingZoo ParallelEnv seen as arrays, and the team that acts in it.

Shapes: N agents, O observation features, A actions, S state features, T steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from pettingzoo import ParallelEnv

from .exploration import choose
from .networks import AgentNetwork
from .padding import MASK_KEY, pad_masks, pad_observations, space_spec, split
from .types import EnvSpec, Episode, View


class TeamEnv:
    """A ParallelEnv with one padded view, one action vector and one reward for the whole team.

    An agent that has left sees zeros and can only take action 0, which is not sent to the environment. An environment
    without state() gets all observations in a row as its state. Reads the specification by resetting once.

    Raises ValueError for what QMIX cannot play: action spaces other than Discrete, observations without a fixed size,
    rewards that differ between agents, no legal action.
    """

    def __init__(self, env: ParallelEnv[str, Any, Any]) -> None:
        if not hasattr(env, "possible_agents") or hasattr(env, "agent_iter"):
            raise ValueError(
                f"{type(env).__name__} is no PettingZoo ParallelEnv with possible_agents; convert an AEC environment "
                "with pettingzoo.utils.conversions.aec_to_parallel"
            )
        self.env = env
        self._live: list[str] = []
        self.spec = self._read_spec()

    def reset(self, seed: int) -> View:
        """Starts an episode."""
        observations, infos = self.env.reset(seed=seed)
        self._live = list(self.env.agents)
        if not self._live:
            raise ValueError("the environment has no agents after reset(); an episode needs at least one")
        self.infos = infos
        return self._view(self._live, observations, infos, needed=True)

    def step(self, actions: np.ndarray) -> tuple[View, float, bool, bool]:
        """Takes int [N]; returns what it led to, the team's reward, whether the game terminated, whether it is over.

        Over but not terminated is truncated: the view is then real, as the value of what follows is asked for.
        """
        spec, acting = self.spec, self._live
        sent = {
            agent: int(action) + start
            for agent, action, start in zip(spec.agents, actions, spec.action_starts, strict=True)
            if agent in acting
        }
        observations, rewards, terminations, truncations, infos = self.env.step(sent)
        self.infos = infos
        reward = team_reward({agent: rewards[agent] for agent in acting if agent in rewards})
        ended = [agent for agent in acting if terminations.get(agent, False)]
        cut_off = [agent for agent in acting if truncations.get(agent, False) and agent not in ended]
        self._live = [agent for agent in self.env.agents if agent not in ended and agent not in cut_off]
        over = not self._live
        terminated = over and not cut_off
        seen = cut_off if over else self._live
        return self._view(seen, observations, infos, needed=not terminated), reward, terminated, over

    def _view(self, agents: list[str], observations: Mapping, infos: Mapping, needed: bool) -> View:
        missing = [agent for agent in agents if agent not in observations]
        if missing:
            raise ValueError(f"the environment gave no observation for agents {missing}, which are still in the game")
        padded = pad_observations(self.spec, {agent: observations[agent] for agent in agents})
        masks = {agent: _mask(observations[agent], infos.get(agent, {})) for agent in agents}
        if not self.spec.has_state:
            state = padded.reshape(-1).copy()
        elif needed:
            state = self._state()
        else:  # nothing depends on it, and some environments have no state once all agents are gone
            state = np.zeros(self.spec.n_state, dtype=np.float32)
        return View(padded, pad_masks(self.spec, masks), state)

    def _state(self) -> np.ndarray:
        state = np.asarray(self.env.state(), dtype=np.float32).ravel().copy()
        if state.shape != (self.spec.n_state,) or not np.isfinite(state).all():
            raise ValueError(
                f"state() gave {state.size} features, {np.isfinite(state).sum()} of them finite; expected "
                f"{self.spec.n_state} finite numbers, as after the first reset()"
            )
        return state

    def _read_spec(self) -> EnvSpec:
        env, agents = self.env, tuple(self.env.possible_agents)
        if not agents:
            raise ValueError("possible_agents is empty; QMIX needs at least one agent")
        for agent in agents:
            if not isinstance(env.action_space(agent), spaces.Discrete):
                raise ValueError(
                    f"action space of agent {agent!r} is {env.action_space(agent)}; QMIX takes the best of a finite "
                    "set of actions and needs Discrete. Discretise the actions in a wrapper"
                )
        observations = tuple(space_spec(agent, env.observation_space(agent)) for agent in agents)
        env.reset(seed=0)
        try:
            n_state, has_state = np.asarray(env.state()).size, True
        except (NotImplementedError, AttributeError):
            n_state, has_state = len(agents) * max(space.size for space in observations), False
        return EnvSpec(
            agents=agents,
            observations=observations,
            n_actions=tuple(int(env.action_space(agent).n) for agent in agents),
            action_starts=tuple(int(env.action_space(agent).start) for agent in agents),
            n_state=n_state,
            has_state=has_state,
        )


def team_reward(rewards: Mapping[str, float]) -> float:
    """The one reward that all agents got. Raises ValueError when they differ: then it is no team."""
    values = {agent: float(reward) for agent, reward in rewards.items()}
    if not values:
        raise ValueError("the environment gave no rewards to the agents that acted")
    first = next(iter(values.values()))
    if not all(math.isfinite(value) for value in values.values()):
        raise ValueError(f"rewards must be finite; got {values}")
    if not all(math.isclose(value, first, rel_tol=1e-6, abs_tol=1e-9) for value in values.values()):
        raise ValueError(
            f"agents got different rewards: {values}. QMIX learns one value for the whole team, so all agents must get "
            "the team's reward; for individual interests, sum or average them in a wrapper, or use another algorithm"
        )
    return first


def team_scalars(infos: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Numbers that all agents' infos agree on."""
    shared: dict[str, float] = {}
    entries = [info for info in infos.values() if isinstance(info, Mapping)]
    for key in entries[0] if entries else ():
        values = [info.get(key) for info in entries]
        if all(isinstance(value, (bool, int, float, np.number, np.bool_)) for value in values):
            numbers = {float(value) for value in values}  # type: ignore[arg-type]
            if len(numbers) == 1:
                shared[str(key)] = numbers.pop()
    return shared


class Team:
    """All agents, acting with one network: it keeps their memories and last actions from step to step."""

    def __init__(self, network: AgentNetwork, spec: EnvSpec, exploration: str, device: torch.device) -> None:
        self._network, self._spec, self._exploration, self._device = network, spec, exploration, device
        self.reset()

    def reset(self) -> None:
        """Forgets: a new episode starts."""
        self._hidden: torch.Tensor | None = None
        self._last_actions = np.full(self._spec.n_agents, -1, dtype=np.int64)

    @torch.no_grad()
    def act(
        self, observations: np.ndarray, action_masks: np.ndarray, epsilon: float, rng: np.random.Generator
    ) -> np.ndarray:
        """Epsilon-greedy legal actions: observations [N, O], masks bool [N, A] -> int64 [N]."""
        seen = torch.tensor(observations, device=self._device)[None, None]  # [1, 1, N, O]
        last = torch.tensor(self._last_actions, device=self._device)[None, None]  # [1, 1, N]
        q, self._hidden = self._network(seen, last, self._hidden)
        self._last_actions = choose(q[0, 0].cpu().numpy(), action_masks, epsilon, rng, self._exploration)
        return self._last_actions


def play_episode(
    env: TeamEnv, team: Team, epsilon: float, seed: int, rng: np.random.Generator
) -> tuple[Episode, dict[str, float]]:
    """One episode from reset to end, and what the infos of its last step agree on.

    seed  of the environment's reset
    rng   what explores
    """
    team.reset()
    views, actions, rewards, terminations = [env.reset(seed)], [], [], []
    over = False
    while not over:
        action = team.act(views[-1].observations, views[-1].action_masks, epsilon, rng)
        view, reward, terminated, over = env.step(action)
        views.append(view)
        actions.append(action)
        rewards.append(reward)
        terminations.append(terminated)
    episode = Episode(
        observations=np.stack([view.observations for view in views]),
        states=np.stack([view.state for view in views]),
        action_masks=np.stack([view.action_masks for view in views]),
        actions=np.stack(actions),
        rewards=np.array(rewards, dtype=np.float32),
        terminated=np.array(terminations, dtype=bool),
    )
    return episode, team_scalars(env.infos)


def _mask(observation: Any, info: Mapping[str, Any]) -> Any:
    """The mask in the infos, or the one beside the observation, or None."""
    return info[MASK_KEY] if MASK_KEY in info else split(observation)[1]
