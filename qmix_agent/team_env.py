"""A PettingZoo ParallelEnv as arrays: one joint observation, one action vector and one reward for the whole team.

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

from .padding import MASK_KEY, pad_action_masks, pad_observations, space_spec, split_observation
from .types import EnvSpec, JointObservation, StepResult


class TeamEnv:
    """Wraps a ParallelEnv so that a team of agents acts with arrays.

    An agent that has left observes zeros and can only take action 0, which is not sent to the environment. The state of
    an environment without state() is the concatenation of all observations. An environment that has both
    step_async(actions) and step_wait(), as Gymnasium's vector environments have, is stepped with these.

    Args:
        env: The environment.
        spec: Its specification, if known; otherwise it is read, which resets the environment once.

    Raises:
        ValueError: QMIX cannot play the environment: it is not a ParallelEnv, an action space is not Discrete, or an
            observation space has no fixed size. `reset` and the step methods raise it for rewards that differ between
            agents, for invalid observations and states, and where no action is legal.
    """

    def __init__(self, env: ParallelEnv[str, Any, Any], spec: EnvSpec | None = None) -> None:
        if not hasattr(env, "possible_agents") or hasattr(env, "agent_iter"):
            raise ValueError(
                f"{type(env).__name__} is not a PettingZoo ParallelEnv with possible_agents; convert an AEC "
                "environment with pettingzoo.utils.conversions.aec_to_parallel"
            )
        self.env = env
        self._has_async_step = all(_class_has_method(env, name) for name in ("step_async", "step_wait"))
        self._live: list[str] = []
        self._next_actions: dict[str, int] = {}
        self.spec = spec or self._read_spec()
        self.action_counts = np.zeros((self.spec.n_agents, self.spec.max_actions), dtype=np.int64)
        """How often each agent took each action since the last reset, [N, A]."""
        self.shares_state = False
        """Whether its lasting state, which survives a reset, belongs to the environment that it was cloned from."""

    def copy(self) -> TeamEnv:
        """Return another environment of the same kind, from clone() if the environment has it, else a deep copy.

        Clones share the lasting state of the environment.

        Raises:
            ValueError: The environment cannot be copied.
        """
        has_clone = _class_has_method(self.env, "clone")
        try:
            copied = TeamEnv(self.env.clone() if has_clone else copy.deepcopy(self.env), self.spec)
        except Exception as error:
            raise ValueError(
                f"{type(self.env).__name__} cannot be copied for n_envs ({type(error).__name__}: {error}); give it a "
                "clone() method, or pass a list of environments to QMIX"
            ) from error
        copied.shares_state = has_clone
        return copied

    @property
    def has_state_dict(self) -> bool:
        """Whether the environment has the methods state_dict and load_state_dict for its lasting state."""
        return all(callable(getattr(self.env, name, None)) for name in ("state_dict", "load_state_dict"))

    def imagine(self) -> TeamEnv:
        """Return an environment of the same game for planning; see `planning`.

        Raises:
            ValueError: The environment has no method `imagine`.
        """
        if not _class_has_method(self.env, "imagine"):
            raise ValueError(
                f"imagined_episodes needs an environment with the methods imagine() and episode_options(), and "
                f"{type(self.env).__name__} has none; set imagined_episodes to 0"
            )
        return TeamEnv(self.env.imagine(), self.spec)

    @property
    def episode_options(self) -> dict[str, Any]:
        """The options with which reset() repeats the current episode."""
        return dict(self.env.episode_options)

    @property
    def known(self) -> bool:
        """Whether the outcome of the last imagined episode has been paid before."""
        return bool(self.env.known)

    def reset(self, seed: int, options: dict[str, Any] | None = None) -> JointObservation:
        """Start an episode and return its first joint observation."""
        self.action_counts[:] = 0
        observations, infos = self.env.reset(seed=seed, options=options)
        self._live = list(self.env.agents)
        if not self._live:
            raise ValueError("the environment has no agents after reset(); an episode needs at least one")
        self.infos = infos
        return self._joint_observation(self._live, observations, needs_state=True)

    def step_async(self, actions: np.ndarray) -> None:
        """Start a step, without waiting for its end if the environment supports that. `step_wait` must follow.

        Args:
            actions: Action of each agent, int [N]; actions of agents that have left are ignored.
        """
        spec = self.spec
        acting = [index for index, agent in enumerate(spec.agents) if agent in self._live]
        self.action_counts[acting, actions[acting]] += 1
        chosen = actions.tolist()
        self._next_actions = {spec.agents[index]: chosen[index] + spec.action_starts[index] for index in acting}
        if self._has_async_step:
            self.env.step_async(self._next_actions)

    def step_wait(self) -> StepResult:
        """Return the result of the step that `step_async` started."""
        acting = self._live
        step = self.env.step_wait() if self._has_async_step else self.env.step(self._next_actions)
        observations, rewards, terminations, truncations, self.infos = step
        reward = team_reward({agent: rewards[agent] for agent in acting if agent in rewards})
        terminated_agents = [agent for agent in acting if terminations.get(agent, False)]
        truncated_agents = [
            agent for agent in acting if truncations.get(agent, False) and agent not in terminated_agents
        ]
        gone = {*terminated_agents, *truncated_agents}
        self._live = [agent for agent in self.env.agents if agent not in gone]
        done = not self._live
        terminated = done and not truncated_agents
        # After a truncation the agents still observe, because the value of that observation is bootstrapped from.
        observing = truncated_agents if done else self._live
        observation = self._joint_observation(observing, observations, needs_state=not terminated)
        return StepResult(observation, reward, terminated, done)

    def _joint_observation(self, agents: list[str], observations: Mapping, needs_state: bool) -> JointObservation:
        missing = [agent for agent in agents if agent not in observations]
        if missing:
            raise ValueError(f"the environment returned no observation for agents {missing}, which have not left")
        padded = pad_observations(self.spec, {agent: observations[agent] for agent in agents})
        masks = {agent: _action_mask(observations[agent], self.infos.get(agent, {})) for agent in agents}
        if not self.spec.has_state:
            state = padded.reshape(-1).copy()
        elif needs_state:
            state = self._state()
        else:  # the state after a terminal step is never used, and some environments cannot provide it
            state = np.zeros(self.spec.n_state, dtype=np.float32)
        return JointObservation(padded, pad_action_masks(self.spec, masks), state)

    def _state(self) -> np.ndarray:
        state = np.asarray(self.env.state(), dtype=np.float32).ravel().copy()
        if state.shape != (self.spec.n_state,) or not np.isfinite(state).all():
            raise ValueError(
                f"state() returned {state.size} numbers, {np.isfinite(state).sum()} of them finite; expected "
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
                    f"action space of agent {agent!r} is {env.action_space(agent)}, but QMIX needs Discrete; "
                    "discretise the actions in a wrapper"
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
    """Return the common reward of all agents.

    Raises:
        ValueError: There are no rewards, they are not finite, or they differ between agents.
    """
    values = {agent: float(reward) for agent, reward in rewards.items()}
    if not values:
        raise ValueError("the environment returned no rewards for the agents that acted")
    first = next(iter(values.values()))
    if not all(math.isfinite(value) for value in values.values()):
        raise ValueError(f"rewards must be finite, got {values}")
    if not all(math.isclose(value, first, rel_tol=1e-6, abs_tol=1e-9) for value in values.values()):
        raise ValueError(
            f"agents received different rewards: {values}. QMIX learns one value for the whole team, so all agents "
            "must receive the team reward; sum or average individual rewards in a wrapper"
        )
    return first


def shared_info_scalars(infos: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return the numbers on which the infos of all agents agree."""
    shared: dict[str, float] = {}
    entries = [info for info in infos.values() if isinstance(info, Mapping)]
    for key in entries[0] if entries else ():
        numbers = {_as_number(info.get(key)) for info in entries}
        common = numbers.pop()
        if not numbers and common is not None:
            shared[str(key)] = common
    return shared


def _as_number(value: Any) -> float | None:
    return float(value) if isinstance(value, (bool, int, float, np.number, np.bool_)) else None


def _action_mask(observation: Any, info: Mapping[str, Any]) -> Any:
    """Return the mask in the info, or else the one in the observation, or None."""
    return info[MASK_KEY] if MASK_KEY in info else split_observation(observation)[1]


def _class_has_method(env: Any, method: str) -> bool:
    """Whether the class itself has the method. A PettingZoo wrapper forwards what it lacks to the inner environment.

    Calling a forwarded method would bypass the wrapper.
    """
    return callable(getattr(type(env), method, None))
