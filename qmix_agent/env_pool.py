"""The environments of one agent, their copies for parallel episodes, and their lasting state."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, TypeAlias

from pettingzoo import ParallelEnv

from . import checkpoint
from .team_env import TeamEnv
from .types import EnvSpec

OneOrMoreEnvs: TypeAlias = ParallelEnv[str, Any, Any] | Sequence[ParallelEnv[str, Any, Any]]


class EnvPool:
    """The environments that an agent was given, and copies of the first that are made when more are needed.

    Lasting state is what survives a reset, such as an archive of results. Clones share it with the environment that
    they were cloned from, so it is saved once for all of them.

    Args:
        envs: Environments of equal specification, or none.
        spec: The specification of the agent.

    Raises:
        ValueError: An environment has another specification.
    """

    def __init__(self, envs: Sequence[TeamEnv], spec: EnvSpec) -> None:
        for env in envs:
            spec.require_equal(env.spec)
        self.spec = spec
        self.n_given = len(envs)
        """Number of environments that the agent was given."""
        self._envs = list(envs)
        self._saved_states: list[Any] = []  # from a checkpoint; may include environments that do not exist yet

    def take(self, count: int) -> list[TeamEnv]:
        """Return the first `count` environments, making missing ones.

        Raises:
            ValueError: The agent has no environment, or the first cannot be copied.
        """
        if not self._envs:
            raise ValueError(
                "this agent was loaded without an environment, so it can only act; use QMIX.load(directory, env)"
            )
        while len(self._envs) < count:
            env = self._envs[0].copy()
            index = len(self._with_own_state())
            if not env.shares_state and index < len(self._saved_states):
                _load_env_state(env, self._saved_states[index])
            self._envs.append(env)
        return self._envs[:count]

    def state_dicts(self) -> list[Any]:
        """Return the lasting state of each environment that does not share it, encoded for a checkpoint.

        States of a loaded checkpoint whose environments have not been made yet are included unchanged.
        """
        states = [
            checkpoint.encode(env.env.state_dict()) if env.has_state_dict else None for env in self._with_own_state()
        ]
        return states + self._saved_states[len(states) :]

    def load_state_dicts(self, states: list[Any]) -> None:
        """Restore `state_dicts`. The states of environments that do not exist yet are kept for them."""
        self._saved_states = states
        for env, state in zip(self._with_own_state(), states, strict=False):
            _load_env_state(env, state)

    def _with_own_state(self) -> list[TeamEnv]:
        return [env for env in self._envs if not env.shares_state]


def wrap_envs(envs: OneOrMoreEnvs) -> list[TeamEnv]:
    """Wrap one environment or a list of environments.

    Raises:
        ValueError: The list is empty, or QMIX cannot play an environment.
    """
    wrapped = [TeamEnv(env) for env in (envs if isinstance(envs, (list, tuple)) else [envs])]
    if not wrapped:
        raise ValueError("the list of environments is empty; QMIX needs at least one")
    return wrapped


def _load_env_state(env: TeamEnv, state: Any) -> None:
    if state is None:
        return
    if env.has_state_dict:
        env.env.load_state_dict(checkpoint.decode(state))
        return
    warnings.warn(
        f"the checkpoint holds the lasting state of its environment, but {type(env.env).__name__} has no "
        "load_state_dict() and starts without it",
        stacklevel=2,
    )
