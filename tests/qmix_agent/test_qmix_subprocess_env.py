"""Environments in their own processes: equal results, errors, and the end of the process."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from games import Archiving, DictMasks, Memory, Outcome, TwoStep
from qmix_helpers import SMALL, equal_episodes, rows_of, weights

from qmix_agent import QMIX, EnvProcessError, SubprocessEnv


@pytest.fixture
def exit_stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_processes_give_the_same_results_as_this_process(exit_stack: ExitStack, tmp_path: Path) -> None:
    envs = [exit_stack.enter_context(SubprocessEnv(Archiving)) for _ in range(2)]
    remote = QMIX(envs, SMALL, seed=1).learn(4, log_dir=tmp_path / "a", checkpoint_dir=tmp_path, progress=False)
    local = QMIX([Archiving(), Archiving()], SMALL, seed=1).learn(8, log_dir=tmp_path / "b", progress=False)
    assert [len(env.state_dict()["lengths"]) for env in envs] == [2, 2]
    resumed = QMIX.load(tmp_path, envs).learn(8, log_dir=tmp_path / "a", progress=False)
    assert weights(resumed) == weights(local) != weights(remote)
    assert rows_of(tmp_path / "a") == rows_of(tmp_path / "b")


@pytest.mark.parametrize("game", [DictMasks, Memory])
def test_dict_observations_and_a_missing_state_are_transferred(exit_stack: ExitStack, game: Any) -> None:
    env = exit_stack.enter_context(SubprocessEnv(game))
    remote, local = QMIX(env, SMALL).learn(3, progress=False), QMIX(game(), SMALL).learn(3, progress=False)
    assert all(map(equal_episodes, remote.trainer.buffer, local.trainer.buffer))


class Fragile(Archiving):
    """Raises an error, or kills its process, in the third episode."""

    def __init__(self, failure: str) -> None:
        super().__init__()
        self.failure = failure

    def transition(self, actions: dict[str, int]) -> Outcome:
        if len(self.lengths) == 2:
            if self.failure == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ZeroDivisionError("the cause")
        return super().transition(actions)


def fragile_env(failure: str) -> Callable[[], Fragile]:
    return lambda: Fragile(failure)  # cloudpickle accepts a lambda


@pytest.mark.parametrize(
    ("failure", "named"), [("raises", "step.*Traceback.*ZeroDivisionError: the cause"), ("dies", "step.*-9")]
)
def test_a_failing_process_is_reported_and_the_last_round_kept(exit_stack: ExitStack, failure: str, named: str) -> None:
    env = exit_stack.enter_context(SubprocessEnv(fragile_env(failure)))
    agent = QMIX(env, SMALL)
    with pytest.raises(EnvProcessError, match=f"(?s){named}"):
        agent.learn(5, progress=False)
    assert agent.episode == 2
    if failure == "raises":  # the process is still alive
        assert len(env.state_dict()["lengths"]) == 2


def test_an_error_in_env_fn_is_reported() -> None:
    with pytest.raises(EnvProcessError, match="ZeroDivisionError"):
        SubprocessEnv(lambda: 1 / 0)  # type: ignore[arg-type, return-value]


def test_an_interrupted_start_leaves_no_process_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: Connection) -> None:
        started.extend(process for process in multiprocessing.active_children() if process not in before)
        raise KeyboardInterrupt

    before = multiprocessing.active_children()
    started: list[Any] = []
    monkeypatch.setattr(Connection, "recv", interrupted)
    with pytest.raises(KeyboardInterrupt):
        SubprocessEnv(TwoStep)
    assert len(started) == 1
    started[0].join(timeout=30)
    assert not started[0].is_alive()


def test_step_wait_needs_a_pending_step_and_reset_drops_one() -> None:
    with SubprocessEnv(TwoStep) as env:
        with pytest.raises(ValueError, match="step_async"):
            env.step_wait()
        env.reset(seed=0)
        env.step_async({"agent_0": 0, "agent_1": 0})
        env.reset(seed=0)
        assert env.step({"agent_0": 1, "agent_1": 1})[1] == {"agent_0": 0.0, "agent_1": 0.0}


def test_the_process_ends_at_close() -> None:
    before = multiprocessing.active_children()
    with SubprocessEnv(TwoStep) as env:
        (process,) = (child for child in multiprocessing.active_children() if child not in before)
        assert process.is_alive()
    assert process.exitcode == 0
    env.close()
    with pytest.raises(EnvProcessError, match="reset"):
        env.reset()


@pytest.mark.parametrize("copying", [copy.deepcopy, pickle.dumps])
def test_a_process_cannot_be_copied(exit_stack: ExitStack, copying: Callable[[Any], Any]) -> None:
    env = exit_stack.enter_context(SubprocessEnv(TwoStep))
    with pytest.raises(TypeError, match="SubprocessEnv"):
        copying(env)
