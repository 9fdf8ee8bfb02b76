"""Several environments side by side: the same episodes as one by one, and what happens when one of them fails."""

from __future__ import annotations

import copy
import dataclasses
import os
import pickle
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from games import Archiving, DictMasks, LeavesEarly, Memory, Ragged, TwoStep
from test_qmix_agent import SMALL, rows_of, weights

from qmix_agent import QMIX, EnvProcessError, Episode, SubprocessEnv
from qmix_agent.learner import Learner
from qmix_agent.rollout import Start, Team, play_episodes
from qmix_agent.team_env import TeamEnv

KINDS: list[dict[str, Any]] = [
    {},
    {"recurrent": False},
    {"parameter_sharing": False},
    {"exploration": "noisy"},
    {"exploration": "team"},
]


def equal(one: Episode, two: Episode) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(two, name)) for name in Episode.__dataclass_fields__)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("game", [Ragged, LeavesEarly])
def test_playing_together_is_playing_one_by_one(game: type[Ragged], kind: dict[str, Any]) -> None:
    """Episodes of unequal length, each with its own seed, epsilon, exploration and noise."""
    spec, config = TeamEnv(game()).spec, dataclasses.replace(SMALL, **kind)
    learner = Learner(spec, config, seed=0, device="cpu")
    team = Team(learner.network, spec, config.exploration, learner.device)

    def start(seed: int) -> Start:
        rng = np.random.default_rng(seed)
        noise = learner.network.draw_noise(rng) if learner.network.noisy else None
        return Start(seed, 0.2 * seed if not learner.network.noisy else 0.0, rng, noise)

    together = play_episodes([TeamEnv(game()) for _ in range(5)], team, [start(seed) for seed in range(5)])
    for seed, (episode, scalars) in enumerate(together):
        alone, told = play_episodes([TeamEnv(game())], team, [start(seed)])[0]
        assert equal(episode, alone)
        assert scalars == told


def test_one_environment_in_a_list_changes_nothing(tmp_path: Path) -> None:
    agents = [
        QMIX(env, SMALL, seed=3).learn(7, log_dir=tmp_path / str(index), n_envs=n_envs, progress=False)
        for index, (env, n_envs) in enumerate(((Ragged(), None), ([Ragged()], None), (Ragged(), 1)))
    ]
    assert weights(agents[0]) == weights(agents[1]) == weights(agents[2])
    assert rows_of(tmp_path / "0") == rows_of(tmp_path / "1") == rows_of(tmp_path / "2")


@pytest.mark.parametrize("kind", [*KINDS[2:4], {"priority_alpha": 0.6}, {"standardise_returns": True}])
def test_resuming_is_never_having_stopped_with_several_environments(tmp_path: Path, kind: dict[str, Any]) -> None:
    """Archiving is copied deeply: each copy has a state of its own, and each comes back."""
    config = dataclasses.replace(SMALL, buffer_size=10, **kind)
    straight = QMIX(Archiving(), config, seed=5).learn(14, log_dir=tmp_path / "a", n_envs=4, progress=False)
    QMIX(Archiving(), config, seed=5).learn(
        8, log_dir=tmp_path / "b", checkpoint_dir=tmp_path / "b", n_envs=4, progress=False
    )
    agent = QMIX.load(tmp_path / "b", Archiving()).learn(14, log_dir=tmp_path / "b", n_envs=4, progress=False)
    assert weights(agent) == weights(straight)
    assert rows_of(tmp_path / "b") == rows_of(tmp_path / "a")
    lengths = [[env.env.lengths for env in one.team_envs(4)] for one in (agent, straight)]
    assert lengths[0] == lengths[1]
    assert [len(one) for one in lengths[0]] == [4 + 4, 4, 3, 3]  # two greedy evaluations of two episodes in the first
    assert agent.buffer.priorities == straight.buffer.priorities


def test_rounds_checkpoints_and_callbacks(tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    saved: set[int] = set()

    def callback(agent: QMIX, row: dict[str, Any]) -> None:
        heard.append((row["episode"], agent.episode))
        if QMIX.checkpoint_exists(tmp_path):
            saved.add(QMIX.load(tmp_path).episode)

    QMIX(Ragged(), SMALL).learn(
        10, checkpoint_dir=tmp_path, checkpoint_every=3, n_envs=4, callback=callback, progress=False
    )
    assert [row for row, _ in heard] == list(range(1, 11))
    assert [agent for _, agent in heard] == [4] * 4 + [8] * 4 + [10] * 2
    assert saved == {4, 8, 10}  # 3, 6 and 9 lie within rounds


class Noting(Ragged):
    """Says when it is asked for what."""

    calls: list[tuple[str, int]] = []  # noqa: RUF012  (shared by all of them on purpose)

    def __init__(self, number: int = 0) -> None:
        super().__init__()
        self.number = number

    def step_async(self, actions: dict[str, int]) -> None:
        self.calls.append(("async", self.number))
        self.actions = actions

    def step_wait(self) -> Any:
        self.calls.append(("wait", self.number))
        return super().step(self.actions)

    def step(self, actions: dict[str, int]) -> Any:
        raise AssertionError("step_async and step_wait are there")


def test_all_are_sent_their_actions_before_the_first_is_waited_for() -> None:
    agent = QMIX([Noting(index) for index in range(3)], SMALL)
    Noting.calls.clear()
    agent.learn(3, progress=False)
    assert Noting.calls[:12] == [(kind, n) for kind in ("async", "wait") for n in range(3)] * 2
    assert {n for _, n in Noting.calls} == {0, 1, 2}


class Cloning(Archiving):
    """Its clones share the archive."""

    def clone(self) -> Cloning:
        other = Cloning()
        other.lengths = self.lengths
        return other


def test_clones_share_what_lasts_and_it_is_kept_once() -> None:
    agent = QMIX(Cloning(), dataclasses.replace(SMALL, eval_every=0)).learn(8, n_envs=4, progress=False)
    assert [len(env.env.lengths) for env in agent.team_envs(4)] == [8] * 4
    assert len(agent.state_dict()["envs"]) == 1
    deep = QMIX(Archiving(), dataclasses.replace(SMALL, eval_every=0)).learn(8, n_envs=4, progress=False)
    assert [len(env.env.lengths) for env in deep.team_envs(4)] == [2] * 4
    assert len(deep.state_dict()["envs"]) == 4


def test_what_cannot_be_copied_or_mixed_says_so() -> None:
    class Unique(TwoStep):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("a camera cannot be copied")

    with pytest.raises(ValueError, match=r"Unique cannot be copied.*a camera.*clone\(\).*list of environments"):
        QMIX(Unique(), SMALL).learn(2, n_envs=2, progress=False)
    with pytest.raises(ValueError, match="not the one this agent was made for"):
        QMIX([TwoStep(), Memory()])
    with pytest.raises(ValueError, match="list of environments is empty"):
        QMIX([])
    with pytest.raises(ValueError, match="n_envs"):
        QMIX(TwoStep(), SMALL).learn(2, n_envs=0, progress=False)


# Processes


class Fragile(Archiving):
    """Raises, or kills its process, in the third episode that is longer than two steps."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way

    def play(self, actions: dict[str, int]) -> tuple[float, bool, bool]:
        if len(self.lengths) == 2:
            if self.way == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ZeroDivisionError("the oven is cold")
        return super().play(actions)


def fragile_env(way: str) -> Any:
    return lambda: Fragile(way)  # cloudpickle: a lambda will do


@pytest.fixture
def processes() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_processes_play_what_the_same_environments_play_here(processes: ExitStack, tmp_path: Path) -> None:
    envs = [processes.enter_context(SubprocessEnv(Archiving)) for _ in range(2)]
    there = QMIX(envs, SMALL, seed=1).learn(4, log_dir=tmp_path / "a", checkpoint_dir=tmp_path, progress=False)
    here = QMIX([Archiving(), Archiving()], SMALL, seed=1).learn(8, log_dir=tmp_path / "b", progress=False)
    assert [len(state["lengths"]) for state in (env.state_dict() for env in envs)] == [2, 2]
    again = QMIX.load(tmp_path, envs).learn(8, log_dir=tmp_path / "a", progress=False)
    assert weights(again) == weights(here) != weights(there)
    assert rows_of(tmp_path / "a") == rows_of(tmp_path / "b")


def test_dict_observations_and_no_state_travel(processes: ExitStack) -> None:
    for game in (DictMasks, Memory):
        env = processes.enter_context(SubprocessEnv(game))
        there, here = QMIX(env, SMALL).learn(3, progress=False), QMIX(game(), SMALL).learn(3, progress=False)
        assert all(map(equal, there.buffer, here.buffer))


@pytest.mark.parametrize(
    ("way", "message"),
    [("raises", r"failed in step:\nTraceback.*ZeroDivisionError: the oven is cold"), ("dies", "died during.*code -9")],
)
def test_a_failing_process_is_told_of(processes: ExitStack, way: str, message: str) -> None:
    env = processes.enter_context(SubprocessEnv(fragile_env(way)))
    agent = QMIX(env, SMALL)
    with pytest.raises(EnvProcessError, match=f"(?s){message}"):
        agent.learn(5, progress=False)
    assert agent.episode == 2
    if way == "raises":  # the process is still there
        assert len(env.state_dict()["lengths"]) == 2


def test_a_process_that_cannot_start_is_told_of() -> None:
    with pytest.raises(EnvProcessError, match=r"(?s)failed in starting:.*ZeroDivisionError: division by zero"):
        SubprocessEnv(lambda: 1 / 0)  # type: ignore[arg-type, return-value]


def test_an_interrupted_start_leaves_no_process_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: SubprocessEnv, request: str) -> None:
        started.append(self._process)
        raise KeyboardInterrupt

    started: list[Any] = []
    monkeypatch.setattr(SubprocessEnv, "_result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        SubprocessEnv(TwoStep)
    started[0].join(timeout=30)
    assert not started[0].is_alive()


def test_a_process_is_one_and_ends() -> None:
    with SubprocessEnv(TwoStep) as env:
        with pytest.raises(ValueError, match="nothing to wait for"):
            env.step_wait()
        env.reset(seed=0)
        env.step_async({"agent_0": 0, "agent_1": 0})
        env.reset(seed=0)  # drops the step
        assert env.step({"agent_0": 1, "agent_1": 1})[1] == {"agent_0": 0.0, "agent_1": 0.0}
        for attempt in (lambda: copy.deepcopy(env), lambda: pickle.dumps(env)):
            with pytest.raises(TypeError, match="one process"):
                attempt()
        process = env._process
        assert process.is_alive()
    assert process.exitcode == 0
    env.close()
    with pytest.raises(EnvProcessError, match="closed before reset"):
        env.reset()


def test_after_one_of_several_failed_the_others_go_on() -> None:
    class Once(Ragged):
        failed = False

        def play(self, actions: dict[str, int]) -> tuple[float, bool, bool]:
            if not Once.failed and self.time == 2:
                Once.failed = True
                raise RuntimeError("once")
            return super().play(actions)

    agent = QMIX([Once(), Noting(), Noting()], SMALL, seed=2)
    with pytest.raises(RuntimeError, match="once"):
        agent.learn(6, progress=False)
    assert agent.episode == 0
    straight = QMIX(Ragged(), SMALL, seed=2).learn(6, n_envs=3, progress=False)
    assert weights(agent.learn(6, progress=False)) == weights(straight)
