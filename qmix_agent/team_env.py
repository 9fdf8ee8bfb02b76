"""A PettingZoo ParallelEnv as arrays: one joint observation, one action vector and one reward for the whole team.

Shapes: N agents, O observation features, A actions, S state features.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Collection, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv

from .padding import MASK_KEY, pad_action_masks, pad_observations, space_spec, split_observation
from .types import EnvSpec, JointObservation, Proposal, StepResult

NAMES = ("observation_names", "action_names")
"""Attributes of an environment that name its observation features and actions."""
PROPOSAL = "action_proposal"
"""Attribute of an environment that proposes actions: the name of an observation feature, and the amount of that feature
that each action stands for. All its agents have the same features and actions."""
_STEP_DICTS = ("observations", "rewards", "terminations", "truncations", "infos")


class TeamEnv:
    """Wraps a ParallelEnv so that a team of agents acts with arrays.

    An agent leaves when it is terminated or truncated, or when `env.agents` no longer lists it (it has terminated); it
    is back when `env.agents` lists it without either flag. Agents that `env.agents` does not list after a reset do not
    play in the episode. An absent agent observes zeros and can only take action 0, which is not sent to the
    environment. The state of an environment without state() is the concatenation of all observations. An environment
    that has both step_async(actions) and step_wait(), as Gymnasium's vector environments have, is stepped with these.

    Args:
        env: The environment.
        spec: Its specification, if known; otherwise it is read, which resets the environment once.

    Raises:
        ValueError: QMIX cannot play the environment: it is not a ParallelEnv, an action space is not Discrete, an
            observation space has no fixed size, or the state is invalid. `reset` and the step methods raise it for
            rewards that are missing, not finite or differ between agents, and for invalid observations, action masks,
            flags and states. The message names the environment, the agent and the value.
    """

    def __init__(self, env: ParallelEnv[str, Any, Any], spec: EnvSpec | None = None) -> None:
        _check_interface(env)
        self.env = env
        self._has_async_step = all(_class_has_method(env, name) for name in ("step_async", "step_wait"))
        self._live: list[str] = []
        self._next_actions: dict[str, int] = {}
        try:
            self.spec = spec or self._read_spec()
        except ValueError as error:
            raise self._named(error) from error
        self._known = frozenset(self.spec.agents)
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
        if not _class_has_method(self.env, "imagine") or not hasattr(self.env, "episode_options"):
            raise ValueError(
                "planning needs an environment with the method imagine() and the attributes episode_options and known, "
                f"and {type(self.env).__name__} lacks them; in training, set imagined_episodes to 0"
            )
        return TeamEnv(self.env.imagine(), self.spec)

    @property
    def episode_options(self) -> dict[str, Any]:
        """The options with which reset() repeats the current episode."""
        return dict(self.env.episode_options)

    @property
    def all_episode_options(self) -> list[dict[str, Any] | None]:
        """The options of reset() for every kind of episode; [None] if the environment does not list them."""
        return list(getattr(self.env, "all_episode_options", ())) or [None]

    @property
    def known(self) -> bool:
        """Whether the outcome of the last imagined episode has been paid before."""
        return bool(self.env.known)

    def reset(self, seed: int, options: dict[str, Any] | None = None) -> JointObservation:
        """Start an episode and return its first joint observation."""
        self.action_counts[:] = 0
        result = self.env.reset(seed=seed, options=options)
        try:
            if getattr(self.env, "agents", None) is None:
                raise ValueError("it has no attribute agents after reset(); list the agents that have not left there")
            observations, self.infos = _dicts("reset()", result, ("observations", "infos"))
            self._live = self._agents_without(())
            if not self._live:
                raise ValueError("env.agents is empty after reset(); an episode needs at least one agent")
            return self._joint_observation(self._live, observations, needs_state=True)
        except ValueError as error:
            raise self._named(error) from error

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
        result = self.env.step_wait() if self._has_async_step else self.env.step(self._next_actions)
        try:
            return self._step_result(result)
        except ValueError as error:
            raise self._named(error) from error

    def _step_result(self, result: Any) -> StepResult:
        acting = self._live
        observations, rewards, terminations, truncations, self.infos = _dicts("step()", result, _STEP_DICTS)
        agents = dict.fromkeys((*acting, *self.env.agents))
        terminated_agents = _flagged("terminations", terminations, agents)
        truncated = _flagged("truncations", truncations, agents)
        truncated_agents = [agent for agent in acting if agent in truncated and agent not in terminated_agents]
        self._live = self._agents_without({*terminated_agents, *truncated})
        if missing := [agent for agent in acting if agent not in rewards and agent in self._live]:
            raise ValueError(f"step() returned no reward for agents {missing}, which acted and have not left")
        reward = team_reward({agent: rewards[agent] for agent in acting if agent in rewards})
        done = not self._live
        terminated = done and not truncated_agents
        # After a truncation the agents still observe, because the value of that observation is bootstrapped from.
        observing = truncated_agents if done else self._live
        observation = self._joint_observation(observing, observations, needs_state=not terminated)
        return StepResult(observation, reward, terminated, done)

    def _agents_without(self, gone: Collection[str]) -> list[str]:
        """Return the agents that the environment lists, without those in `gone`."""
        agents = [agent for agent in self.env.agents if agent not in gone]
        if not self._known.issuperset(agents):
            unknown = [agent for agent in agents if agent not in self._known]
            raise ValueError(
                f"env.agents holds {unknown}, which possible_agents {list(self.spec.agents)} does not list"
            )
        return agents

    def _named(self, error: ValueError) -> ValueError:
        """Return the error with the name of the environment, which may be one of several."""
        return ValueError(f"{type(self.env).__name__}: {error}")

    def _joint_observation(self, agents: list[str], observations: Mapping, needs_state: bool) -> JointObservation:
        if missing := [agent for agent in agents if agent not in observations]:
            raise ValueError(
                f"there is no observation for agents {missing}, which have not left or have just been truncated"
            )
        padded = pad_observations(self.spec, {agent: observations[agent] for agent in agents})
        masks = {agent: _action_mask(agent, observations[agent], self.infos.get(agent)) for agent in agents}
        if not self.spec.has_state:
            state = padded.reshape(-1).copy()
        elif needs_state:
            state = _state_vector(self.env.state(), self.spec.n_state)
        else:  # the state after a terminal step is never used, and some environments cannot provide it
            state = np.zeros(self.spec.n_state, dtype=np.float32)
        present = np.array([agent in masks for agent in self.spec.agents])
        return JointObservation(padded, pad_action_masks(self.spec, masks), state, present)

    def _read_spec(self) -> EnvSpec:
        env, agents = self.env, tuple(self.env.possible_agents)
        if not agents or len(set(agents)) < len(agents):
            raise ValueError(
                f"possible_agents is {list(agents)}; QMIX needs at least one agent, each with its own name"
            )
        for agent in agents:
            if not isinstance(env.action_space(agent), spaces.Discrete):
                raise ValueError(
                    f"action space of agent {agent!r} is {env.action_space(agent)}, but QMIX needs Discrete; "
                    "discretise the actions in a wrapper"
                )
        observations = tuple(space_spec(agent, env.observation_space(agent)) for agent in agents)
        env.reset(seed=0, options=self.all_episode_options[0])
        state = state_of(env)
        n_state = len(agents) * max(1, *(space.size for space in observations))
        if state is not None:
            n_state = _state_vector(state).size
        return EnvSpec(
            agents=agents,
            observations=observations,
            n_actions=tuple(int(env.action_space(agent).n) for agent in agents),
            action_starts=tuple(int(env.action_space(agent).start) for agent in agents),
            n_state=n_state,
            has_state=state is not None,
            proposal=proposal_of(env),
        )


def proposal_of(env: Any) -> Proposal | None:
    """Return what an environment proposes, None if it proposes nothing.

    Raises:
        ValueError: The attribute `action_proposal` does not fit the environment's observations and actions.
    """
    given = getattr(env, PROPOSAL, None)
    if given is None:
        return None
    try:
        name, amounts = given
        names = list(env.observation_names)
        proposal = Proposal(names.index(name), tuple(map(float, amounts)))
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{PROPOSAL} is {given!r}; expected the name of one of observation_names, and one finite number for each "
            "action"
        ) from error
    for agent in env.possible_agents:
        own = space_spec(agent, env.observation_space(agent)).size, int(env.action_space(agent).n)
        if own != (len(names), len(proposal.amounts)):
            raise ValueError(
                f"{PROPOSAL} needs all agents to have the {len(names)} observation_names and {len(proposal.amounts)} "
                f"actions, but agent {agent!r} has {own[0]} and {own[1]}"
            )
    return proposal


def team_reward(rewards: Mapping[str, float]) -> float:
    """Return the common reward of all agents.

    Raises:
        ValueError: There are no rewards, one is not a finite number, or they differ between agents.
    """
    values = {}
    for agent, reward in rewards.items():
        number = reward if type(reward) is float else _scalar(reward)
        if type(number) is not float and not isinstance(number, Real):
            raise ValueError(f"reward of agent {agent!r} is {reward!r}; expected one number")
        values[agent] = float(number)
    if not values:
        raise ValueError("the environment returned no rewards for the agents that acted")
    first = next(iter(values.values()))
    if math.isfinite(first) and len(set(values.values())) == 1:  # the usual case, fast
        return first
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


def state_of(env: Any) -> Any:
    """Return the state of an environment, or None if it has no method state()."""
    if not callable(getattr(env, "state", None)):
        return None
    try:
        return env.state()
    except NotImplementedError:
        return None
    except AttributeError as error:
        # The first is from a wrapper around an environment without state(), the second from PettingZoo's own state() in
        # an environment without metadata. Any other name is an error in the environment's state().
        if error.name not in ("state", "metadata"):
            raise
        return None
    except TypeError:
        # PettingZoo's wrappers call the state of the innermost environment, which may be an attribute.
        if callable(getattr(getattr(env, "unwrapped", env), "state", None)):
            raise
        return None


def _state_vector(state: Any, size: int | None = None) -> np.ndarray:
    """Return a state as a new float32 array [S], checked to have this size, or any size above 0 if it is None."""
    try:
        vector = np.array(state, dtype=np.float32).ravel()
    except (TypeError, ValueError) as error:
        raise ValueError(f"state() returned a {type(state).__name__} that is no array of numbers: {error}") from error
    if not vector.size or vector.size != (size or vector.size) or not np.isfinite(vector).all():
        expected = f"{size} finite numbers, as after the first reset()" if size else "at least one, and all finite"
        raise ValueError(
            f"state() returned {vector.size} numbers, {np.isfinite(vector).sum()} of them finite; expected {expected}"
        )
    return vector


def _check_interface(env: Any) -> None:
    """Raise ValueError if an object is not a ParallelEnv."""
    needed = ("possible_agents", "observation_space", "action_space", "reset", "step")
    missing = [name for name in needed if getattr(env, name, None) is None]
    if missing or isinstance(env, type) or hasattr(env, "agent_iter"):
        name = f"the class {env.__name__}" if isinstance(env, type) else type(env).__name__
        without = f" (it has no {', '.join(missing)})" if missing else ""
        raise ValueError(
            f"{name} is not a PettingZoo ParallelEnv with possible_agents{without}; create an object of a class, and "
            "convert an AEC environment with pettingzoo.utils.conversions.aec_to_parallel"
        )
    try:
        inspect.signature(env.reset).bind(seed=0)
    except TypeError as error:
        raise ValueError(
            f"{type(env).__name__}: reset() takes no seed ({error}); define it as reset(self, seed=None, options=None)"
        ) from error


def _dicts(method: str, result: Any, names: Sequence[str]) -> Sequence[Mapping[str, Any]]:
    """Return the result of reset() or step(), checked to hold one dict for each of `names`."""
    parts = result if isinstance(result, (tuple, list)) else [result]
    if len(parts) != len(names) or not all(isinstance(part, (dict, Mapping)) for part in parts):
        types = ", ".join(type(part).__name__ for part in parts)
        raise ValueError(f"{method} returned ({types}); expected {len(names)} dicts: {', '.join(names)}")
    return parts


def _flagged(name: str, flags: Mapping[str, Any], agents: Collection[str]) -> list[str]:
    """Return the agents whose flag is set. A missing flag is not set."""
    unclear = {agent: flag for agent in agents if (flag := flags.get(agent, False)) is not False}
    for agent, flag in unclear.items():
        if _scalar(flag) not in (0, 1):
            raise ValueError(f"{name} of agent {agent!r} is {flag!r}; expected True or False")
    return [agent for agent, flag in unclear.items() if flag]


def _scalar(value: Any) -> Any:
    """Return the number in an array or tensor with one element, None for other sizes, and all else unchanged."""
    try:
        return value.item() if hasattr(value, "item") else value
    except (ValueError, RuntimeError):
        return None


def _action_mask(agent: str, observation: Any, info: Any) -> Any:
    """Return the mask in the info, or else the one in the observation, or None."""
    if isinstance(info, (dict, Mapping)):
        if MASK_KEY in info:
            return info[MASK_KEY]
    elif info is not None:
        raise ValueError(f"info of agent {agent!r} is a {type(info).__name__}; expected a dict")
    return split_observation(observation)[1]


def _class_has_method(env: Any, method: str) -> bool:
    """Whether the class itself has the method. A PettingZoo wrapper forwards what it lacks to the inner environment.

    Calling a forwarded method would bypass the wrapper.
    """
    return callable(getattr(type(env), method, None))
