"""A PettingZoo ParallelEnv seen as arrays: one view, one action vector, one reward for the whole team.

Shapes: N agents, O observation features, A actions, S state features.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv

from .padding import MASK_KEY, pad_masks, pad_observations, space_spec, split
from .types import EnvSpec, View


class TeamEnv:
    """A ParallelEnv with one padded view, one action vector and one reward for the whole team.

    An agent that has left sees zeros and can only take action 0, which is not sent to the environment. An environment
    without state() gets all observations in a row as its state. One with both step_async(actions) and step_wait(), as
    Gymnasium's vector environments have them, is stepped by these. Reads the specification by resetting once.

    Raises ValueError for what QMIX cannot play: action spaces other than Discrete, observations without a fixed size,
    rewards that differ between agents, no legal action.
    """

    def __init__(self, env: ParallelEnv[str, Any, Any], spec: EnvSpec | None = None) -> None:
        if not hasattr(env, "possible_agents") or hasattr(env, "agent_iter"):
            raise ValueError(
                f"{type(env).__name__} is no PettingZoo ParallelEnv with possible_agents; convert an AEC environment "
                "with pettingzoo.utils.conversions.aec_to_parallel"
            )
        self.env = env
        self._steps_async = all(_own(env, name) for name in ("step_async", "step_wait"))
        self._live: list[str] = []
        self._sent: dict[str, int] = {}
        self.spec = spec or self._read_spec()
        self.action_counts = np.zeros((self.spec.n_agents, self.spec.max_actions), dtype=np.int64)
        """How often each agent took each action since the last reset, [N, A]."""
        self.shared = False
        """Whether what lasts from episode to episode is another environment's."""

    def copy(self) -> TeamEnv:
        """Another environment of the same kind: its clone(), which shares what lasts, or else a deep copy."""
        clones = _own(self.env, "clone")
        try:
            copied = TeamEnv(self.env.clone() if clones else copy.deepcopy(self.env), self.spec)
        except Exception as error:
            raise ValueError(
                f"{type(self.env).__name__} cannot be copied for n_envs ({type(error).__name__}: {error}); give it a "
                "clone() method, or give QMIX a list of environments"
            ) from error
        copied.shared = clones
        return copied

    @property
    def has_state_dict(self) -> bool:
        """Whether the environment can tell and be told what lasts."""
        return all(callable(getattr(self.env, name, None)) for name in ("state_dict", "load_state_dict"))

    def reset(self, seed: int) -> View:
        """Starts an episode."""
        self.action_counts[:] = 0
        observations, infos = self.env.reset(seed=seed)
        self._live = list(self.env.agents)
        if not self._live:
            raise ValueError("the environment has no agents after reset(); an episode needs at least one")
        self.infos = infos
        return self._view(self._live, observations, infos, needed=True)

    def step_async(self, actions: np.ndarray) -> None:
        """Takes int [N] and starts the step where the environment can work on its own; `step_wait` must follow."""
        spec = self.spec
        acting = [index for index, agent in enumerate(spec.agents) if agent in self._live]
        self.action_counts[acting, actions[acting]] += 1
        chosen = actions.tolist()
        self._sent = {spec.agents[index]: chosen[index] + spec.action_starts[index] for index in acting}
        if self._steps_async:
            self.env.step_async(self._sent)

    def step_wait(self) -> tuple[View, float, bool, bool]:
        """What the step led to, the team's reward, whether the game terminated, whether it is over.

        Over but not terminated is truncated: the view is then real, as the value of what follows is asked for.
        """
        acting = self._live
        step = self.env.step_wait() if self._steps_async else self.env.step(self._sent)
        observations, rewards, terminations, truncations, infos = step
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


def _mask(observation: Any, info: Mapping[str, Any]) -> Any:
    """The mask in the infos, or the one beside the observation, or None."""
    return info[MASK_KEY] if MASK_KEY in info else split(observation)[1]


def _own(env: Any, method: str) -> bool:
    """Whether the class has the method. PettingZoo's wrappers pass on what they lack, and would be passed by."""
    return callable(getattr(type(env), method, None))
