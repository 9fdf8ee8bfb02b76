"""A ParallelEnv in a process of its own, so that several can step at the same time."""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from gymnasium import spaces
from gymnasium.vector.utils import CloudpickleWrapper
from pettingzoo import ParallelEnv

Step = tuple[dict[str, Any], dict[str, float], dict[str, bool], dict[str, bool], dict[str, Any]]


class EnvProcessError(RuntimeError):
    """The environment's process raised an error or died."""


class SubprocessEnv(ParallelEnv[str, Any, Any]):
    """The environment that `env_fn()` makes, in a process of its own.

        if __name__ == "__main__":  # the new processes import this file too
            with SubprocessEnv(make_env) as one, SubprocessEnv(make_env) as two:
                QMIX([one, two]).learn(episodes=300)

    The process is spawned, not forked: nothing is inherited, threads and locks least of all. It ends with `close`, or
    with this process. It cannot start processes with `multiprocessing` itself (it is a daemon).

    Raises EnvProcessError, with the traceback of the process, when the environment raises, and when the process dies.
    """

    def __init__(self, env_fn: Callable[[], ParallelEnv[str, Any, Any]]) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, CloudpickleWrapper(env_fn)), daemon=True)
        self._process.start()
        theirs.close()  # so that the end of the process is the end of the connection
        self._waiting = False
        try:
            about = self._result("starting")
        except BaseException:  # Ctrl-C, too: nobody could close what was never made
            self._process.kill()
            self.close()
            raise
        self.possible_agents: list[str] = about["possible_agents"]
        self.observation_spaces, self.action_spaces = about["observation_spaces"], about["action_spaces"]
        self.metadata = about["metadata"]
        self.agents: list[str] = []
        self._state: Any = None

    def observation_space(self, agent: str) -> spaces.Space:
        """Of this agent."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space:
        """Of this agent."""
        return self.action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """As the environment's. A step that nobody waited for is dropped."""
        return self._moved(self._ask("reset", seed, options))

    def step_async(self, actions: dict[str, Any]) -> None:
        """Starts a step; `step_wait` must follow."""
        self._send("step", actions)
        self._waiting = True

    def step_wait(self) -> Step:
        """What `step` returns, of the step that `step_async` started."""
        if not self._waiting:
            raise ValueError("step_wait() has nothing to wait for; call step_async(actions) first")
        self._waiting = False
        return self._moved(self._result("step"))

    def step(self, actions: dict[str, Any]) -> Step:
        """`step_async` and `step_wait`."""
        self.step_async(actions)
        return self.step_wait()

    def state(self) -> Any:
        """As the environment's, after the last reset or step. Raises NotImplementedError where it has none."""
        if self._state is None:
            raise NotImplementedError("the environment in the process has no state()")
        return self._state

    def state_dict(self) -> Any:
        """As the environment's; None where it has none."""
        return self._ask("state_dict")

    def load_state_dict(self, state: Any) -> None:
        """As the environment's."""
        self._ask("load_state_dict", state)

    def close(self) -> None:
        """Ends the process. May be called again."""
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
        raise TypeError("a SubprocessEnv is one process and cannot be copied; make one for each that is needed")

    def _moved(self, answer: tuple[Any, list[str], Any]) -> Any:
        result, self.agents, self._state = answer
        return result

    def _ask(self, request: str, *arguments: Any) -> Any:
        if self._waiting:
            self._waiting = False
            self._result("step")
        self._send(request, *arguments)
        return self._result(request)

    def _send(self, request: str, *arguments: Any) -> None:
        try:
            self._connection.send((request, arguments))
        except OSError as error:
            raise self._died(request) from error

    def _result(self, request: str) -> Any:
        try:
            fine, answer = self._connection.recv()
        except (EOFError, OSError) as error:
            raise self._died(request) from error
        if not fine:
            raise EnvProcessError(f"the environment in process {self._process.pid} failed in {request}:\n{answer}")
        return answer

    def _died(self, request: str) -> EnvProcessError:
        if self._connection.closed:
            return EnvProcessError(f"this SubprocessEnv was closed before {request}")
        self._process.join(timeout=5)
        return EnvProcessError(
            f"the environment's process {self._process.pid} died during {request} with exit code "
            f"{self._process.exitcode} (a negative one is the signal that killed it; -9 is often a lack of memory). "
            "A script that makes one needs `if __name__ == '__main__':`, as the new process imports it"
        )


def _serve(connection: Connection, env_fn: CloudpickleWrapper) -> None:
    """In the new process: answers with (True, result) or (False, traceback) until the other side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of the terminal; the parent decides
    try:
        env = env_fn.fn()
        connection.send((True, _about(env)))
    except Exception:
        connection.send((False, traceback.format_exc()))
        return
    try:
        while True:
            request, arguments = connection.recv()
            try:
                connection.send((True, _answer(env, request, arguments)))
            except Exception:  # the environment's own, or an answer that cannot be pickled; the next reset may be fine
                connection.send((False, traceback.format_exc()))
    except (EOFError, OSError):  # the other side is gone
        pass
    finally:
        env.close()


def _about(env: ParallelEnv[str, Any, Any]) -> dict[str, Any]:
    agents = list(env.possible_agents)
    return {
        "possible_agents": agents,
        "observation_spaces": {agent: env.observation_space(agent) for agent in agents},
        "action_spaces": {agent: env.action_space(agent) for agent in agents},
        "metadata": dict(getattr(env, "metadata", {})),
    }


def _answer(env: Any, request: str, arguments: tuple) -> Any:
    if request == "state_dict":
        return env.state_dict() if hasattr(env, "state_dict") else None
    if request == "load_state_dict":
        return env.load_state_dict(*arguments)
    moved = env.reset(seed=arguments[0], options=arguments[1]) if request == "reset" else env.step(*arguments)
    return moved, list(env.agents), _state_of(env)


def _state_of(env: Any) -> Any:
    """None where the environment has no state(), or none any more once all agents are gone."""
    try:
        return env.state()
    except (NotImplementedError, AttributeError):
        return None
    except Exception:
        if env.agents:
            raise
        return None
