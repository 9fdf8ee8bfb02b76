"""A ParallelEnv in its own process, so that several can step at the same time."""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from gymnasium import spaces
from gymnasium.vector.utils import CloudpickleWrapper
from pettingzoo import ParallelEnv

from .team_env import NAMES, PROPOSAL, state_of

ParallelStep = tuple[dict[str, Any], dict[str, float], dict[str, bool], dict[str, bool], dict[str, Any]]
"""What `ParallelEnv.step` returns: observations, rewards, terminations, truncations and infos."""


class EnvProcessError(RuntimeError):
    """The environment's process raised an error or died."""


FORWARDED = (*NAMES, PROPOSAL, "all_episode_options")
"""Attributes of the environment that are read once, at the start."""


class SubprocessEnv(ParallelEnv[str, Any, Any]):
    """Runs the environment that `env_fn()` makes in its own process.

        if __name__ == "__main__":  # the new processes import this file too
            with SubprocessEnv(make_env) as one, SubprocessEnv(make_env) as two:
                QMIX([one, two]).learn(total_episodes=300)

    The process is spawned, not forked, so it inherits no threads or locks. It ends at `close`, or when this process
    ends. It is a daemon, so the environment cannot start processes with `multiprocessing` itself.

    Args:
        env_fn: Makes the environment. It is pickled with cloudpickle, so a lambda is allowed.

    Raises:
        EnvProcessError: The environment raised an error (the message contains its traceback) or its process died. All
            methods that use the environment can raise it.
    """

    def __init__(self, env_fn: Callable[[], ParallelEnv[str, Any, Any]]) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, child_connection = context.Pipe()
        arguments = (child_connection, CloudpickleWrapper(env_fn))
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        child_connection.close()  # the connection then ends with the process
        self._step_pending = False
        try:
            properties = self._receive("start")
        except BaseException:  # includes Ctrl-C: the caller has no object to close yet
            self._process.kill()
            self.close()
            raise
        self.possible_agents: list[str] = properties["possible_agents"]
        self.observation_spaces, self.action_spaces = properties["observation_spaces"], properties["action_spaces"]
        self.metadata = properties["metadata"]
        for attribute in properties.keys() & set(FORWARDED):
            setattr(self, attribute, properties[attribute])
        self.agents: list[str] = []
        self._state: Any = None

    def observation_space(self, agent: str) -> spaces.Space:
        """Return the observation space of an agent."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space:
        """Return the action space of an agent."""
        return self.action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reset the environment. The result of a pending step is dropped."""
        return self._update(self._call("reset", seed, options))

    def step_async(self, actions: dict[str, Any]) -> None:
        """Start a step; `step_wait` must follow."""
        self._send("step", actions)
        self._step_pending = True

    def step_wait(self) -> ParallelStep:
        """Return the result of the step that `step_async` started."""
        if not self._step_pending:
            raise ValueError("step_wait() was called without a pending step; call step_async(actions) first")
        self._step_pending = False
        return self._update(self._receive("step"))

    def step(self, actions: dict[str, Any]) -> ParallelStep:
        """Step the environment: `step_async`, then `step_wait`."""
        self.step_async(actions)
        return self.step_wait()

    def state(self) -> Any:
        """Return the environment's state after the last reset or step.

        Raises:
            NotImplementedError: The environment has no state.
        """
        if self._state is None:
            raise NotImplementedError("the environment in the process has no state()")
        return self._state

    def state_dict(self) -> Any:
        """Return the environment's state_dict(), or None if it has no such method."""
        return self._call("state_dict")

    def load_state_dict(self, state: Any) -> None:
        """Call the environment's load_state_dict()."""
        self._call("load_state_dict", state)

    def close(self) -> None:
        """End the process. It is safe to call this more than once."""
        self._connection.close()
        self._process.join(timeout=5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def __enter__(self) -> SubprocessEnv:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError("a SubprocessEnv owns a process and cannot be copied or pickled; create a new one instead")

    def _update(self, reply: _StepReply) -> Any:
        self.agents, self._state = reply.agents, reply.state
        return reply.result

    def _call(self, method: str, *arguments: Any) -> Any:
        if self._step_pending:
            self._step_pending = False
            self._receive("step")
        self._send(method, *arguments)
        return self._receive(method)

    def _send(self, method: str, *arguments: Any) -> None:
        try:
            self._connection.send((method, arguments))
        except OSError as error:
            raise self._death(method) from error

    def _receive(self, method: str) -> Any:
        try:
            reply: _Reply = self._connection.recv()
        except (EOFError, OSError) as error:
            raise self._death(method) from error
        if reply.traceback is not None:
            raise EnvProcessError(
                f"the environment in process {self._process.pid} failed in {method}:\n{reply.traceback}"
            )
        return reply.value

    def _death(self, method: str) -> EnvProcessError:
        if self._connection.closed:
            return EnvProcessError(f"cannot call {method}: this SubprocessEnv is closed")
        self._process.join(timeout=5)
        return EnvProcessError(
            f"the environment's process {self._process.pid} died in {method} with exit code {self._process.exitcode} "
            "(a negative code is the signal that killed it; -9 often means that memory ran out). A script that creates "
            "a SubprocessEnv needs `if __name__ == '__main__':`, because the new process imports it"
        )


class _Reply(NamedTuple):
    """What the process sends back: a value, or the traceback of an error."""

    value: Any = None
    traceback: str | None = None


class _StepReply(NamedTuple):
    """The value of a reply to reset and step."""

    result: Any
    agents: list[str]
    state: Any


def _serve(connection: Connection, env_fn: CloudpickleWrapper) -> None:
    """Run in the new process: answer calls until the parent closes the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends Ctrl-C to all processes; the parent handles it
    try:
        env = env_fn.fn()
        connection.send(_Reply(_properties(env)))
    except Exception:
        connection.send(_Reply(traceback=traceback.format_exc()))
        return
    try:
        while True:
            method, arguments = connection.recv()
            try:
                connection.send(_Reply(_invoke(env, method, arguments)))
            except Exception:  # from the environment, or the value cannot be pickled; the next reset may succeed
                connection.send(_Reply(traceback=traceback.format_exc()))
    except (EOFError, OSError):  # the parent closed the connection or ended
        pass
    finally:
        env.close()


def _properties(env: ParallelEnv[str, Any, Any]) -> dict[str, Any]:
    agents = list(env.possible_agents)
    return {
        "possible_agents": agents,
        "observation_spaces": {agent: env.observation_space(agent) for agent in agents},
        "action_spaces": {agent: env.action_space(agent) for agent in agents},
        "metadata": dict(getattr(env, "metadata", {})),
        **{attribute: getattr(env, attribute) for attribute in FORWARDED if hasattr(env, attribute)},
    }


def _invoke(env: Any, method: str, arguments: tuple) -> Any:
    if method == "state_dict":
        return env.state_dict() if hasattr(env, "state_dict") else None
    if method == "load_state_dict":
        return env.load_state_dict(*arguments)
    result = env.reset(seed=arguments[0], options=arguments[1]) if method == "reset" else env.step(*arguments)
    return _StepReply(result, list(env.agents), _state_of(env))


def _state_of(env: Any) -> Any:
    """Return the environment's state, or None if it has none or can provide none after all agents have left."""
    try:
        return state_of(env)
    except Exception:
        if env.agents:
            raise
        return None
