"""Workers: a pool answers as one measurer would, whoever dies and in whatever order answers come."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prune_env.evaluation.racing import Race
from prune_env.evaluation.workers import TRIES, Answer, Died, Failed, Pool, Processes, Question, WorkerError, backend

from prune_env import EnvConfig, FilterPruneEnv
from prune_env.data import DataSplits, Split
from prune_env.evaluation.resources import Resources

EnvMaker = Callable[..., FilterPruneEnv]
SMALL = EnvConfig(reward_images=100, calibration_images=100, prove=False)


@dataclass
class Scripted:
    """Workers in this process: a draw says who answers next, and who dies instead."""

    count: int
    draw: Callable[[int], int]
    dies: Callable[[Question], bool] = lambda question: False
    asked: dict[Hashable, Question] = field(default_factory=dict)
    started: int = 0
    stopped: list[Hashable] = field(default_factory=list)

    def start(self, task: Any) -> int:
        self.started += 1
        return self.started

    def ask(self, worker: int, question: Question) -> None:
        assert worker not in self.asked, "a worker is asked one thing at a time"
        self.asked[worker] = question
        assert len(self.asked) <= self.count

    def answers(self, workers: Sequence[int]) -> list[tuple[int, Answer]]:
        assert set(workers) == set(self.asked)
        worker = workers[self.draw(len(workers))]
        question = self.asked.pop(worker)
        return [(worker, Died("it was told to") if self.dies(question) else truth(question))]

    def stop(self, workers: Sequence[int]) -> None:
        self.stopped += workers


def truth(question: Question) -> float:
    return sum(question[0]) / 100


class TestThePool:
    @settings(max_examples=60)
    @given(st.integers(1, 5), st.lists(st.integers(1, 50), min_size=1, max_size=20), st.data())
    def test_answers_depend_neither_on_number_nor_on_order_nor_on_deaths(
        self, count: int, numbers: list[int], data: st.DataObject
    ) -> None:
        deaths: dict[Any, int] = {}

        def dies(question: Question) -> bool:
            dead = deaths.get(question[0], 0) < TRIES - 1 and data.draw(st.booleans())
            deaths[question[0]] = deaths.get(question[0], 0) + dead
            return dead

        workers = Scripted(count, lambda size: data.draw(st.integers(0, size - 1)), dies)
        pool = Pool(workers, None)  # type: ignore[arg-type]
        plans = [(number,) for number in numbers]
        for plan in plans:
            pool.submit(plan)
        wanted = data.draw(st.permutations(list(dict.fromkeys(plans))))
        assert [pool.result(plan) for plan in wanted] == [truth((plan, None)) for plan in wanted]
        assert workers.started <= count + sum(deaths.values())

    def test_a_plan_that_kills_is_given_up(self) -> None:
        workers = Scripted(2, lambda size: 0, lambda question: question[0] == (7,))
        pool = Pool(workers, None)  # type: ignore[arg-type]
        pool.submit((1,))
        with pytest.raises(
            WorkerError, match=r"3 workers ended while they measured plan \(7,\); the last: it was told to"
        ):
            pool.result((7,))
        assert pool.result((1,)) == 0.01, "the pool goes on afterwards"

    def test_workers_that_died_idle_are_not_held_against_a_plan(self) -> None:
        workers = Scripted(4, lambda size: 0)
        pool = Pool(workers, None)  # type: ignore[arg-type]
        for number in range(4):
            pool.submit((number,))
        assert [pool.result((number,)) for number in range(4)] == [0.0, 0.01, 0.02, 0.03]
        dead = set(range(1, workers.started + 1))
        workers.dies = lambda question: False
        answers = workers.answers
        workers.answers = lambda asked: (  # type: ignore[method-assign]
            [(asked[0], Died("long ago"))] if workers.asked.pop(asked[0], None) and asked[0] in dead else revived(asked)
        )

        def revived(asked: Sequence[int]) -> list[tuple[int, Answer]]:
            workers.asked[asked[0]] = ((9,), None)
            return answers(asked)

        assert pool.result((9,)) == 0.09

    @pytest.mark.parametrize("where", ["start", "ask", "answers"])
    def test_after_an_error_a_question_can_be_asked_again(self, where: str) -> None:
        workers = Scripted(1, lambda size: 0)
        pool, works = Pool(workers, None), getattr(workers, where)  # type: ignore[arg-type]

        def breaks(*_: Any) -> Any:
            setattr(workers, where, works)
            raise OSError("no more processes")

        setattr(workers, where, breaks)
        with pytest.raises(OSError, match="no more processes"):
            pool.result((4,))
        workers.asked.clear()
        assert pool.result((4,)) == 0.04

    def test_after_an_interrupted_close_the_pool_starts_afresh(self) -> None:
        workers = Scripted(1, lambda size: 0)
        pool = Pool(workers, None)  # type: ignore[arg-type]
        assert pool.result((4,)) == 0.04

        def interrupted(_: Any) -> None:
            raise KeyboardInterrupt

        workers.stop = interrupted  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            pool.close()
        assert pool.result((5,)) == 0.05
        assert workers.started == 2

    def test_a_race_and_an_exact_count_are_two_questions(self) -> None:
        pool = Pool(Scripted(1, lambda size: 0), None)  # type: ignore[arg-type]
        pool.submit((3,), Race(0.9, 0.1))
        assert pool.result((3,)) == 0.03
        assert pool.result((3,), Race(0.9, 0.1)) == 0.03

    def test_a_failure_shows_the_workers_traceback(self) -> None:
        workers = Scripted(1, lambda size: 0)
        workers.answers = lambda workers: [(workers[0], Failed("ZeroDivisionError: in the metric"))]  # type: ignore
        with pytest.raises(WorkerError, match="ZeroDivisionError: in the metric"):
            Pool(workers, None).result((1,))  # type: ignore[arg-type]
        assert workers.stopped == [1], "no worker is left behind"

    @pytest.mark.parametrize(
        ("kind", "count", "message"),
        [("local", 2, "needs evaluator="), ("processes", 0, "at least 1"), ("cloud", None, "choose one of local")],
    )
    def test_what_cannot_be_had_is_told(self, kind: Any, count: int | None, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            backend(kind, count)


def half(network: torch.nn.Module, split: Split) -> float:
    return 0.5


def failing(network: torch.nn.Module, split: Split) -> float:
    if os.environ.get("PRUNE_ENV_TEST_FAILS"):
        raise ArithmeticError("this metric fails in workers")
    return 0.5


def played(
    env: FilterPruneEnv, episodes: int, beside: int = 1, after: Callable[[int], None] = lambda turn: None
) -> Any:
    """The archive after random episodes, `beside` of them at a time; each plays what its number says."""
    envs = [env, *(env.clone() for _ in range(beside - 1))]
    for turn in range(episodes // beside):
        rngs = [np.random.default_rng(turn * beside + place) for place in range(beside)]
        infos = [one.reset()[1] for one in envs]
        while envs[0].agents:
            for one, info, rng in zip(envs, infos, rngs, strict=True):
                one.step_async({a: int(rng.choice(np.flatnonzero(info[a]["action_mask"]))) for a in one.agents})
            after(turn)
            infos = [one.step_wait()[4] for one in envs]
    return env.archive.state_dict()


@pytest.mark.slow
class TestProcesses:
    def test_a_killed_worker_changes_nothing(self, trained: torch.nn.Module, digits: DataSplits) -> None:
        def search(kill: bool, count: int) -> Any:
            env = FilterPruneEnv.from_model(
                trained, digits, SMALL, resources=Resources(backend="processes", workers=count)
            )
            killed = []

            def after(turn: int) -> None:
                busy = list(env.evaluator._pool._busy)  # type: ignore[union-attr]
                if kill and turn in (1, 3) and len(killed) < 2 and busy:
                    os.kill(busy[0].process.pid, signal.SIGKILL)  # type: ignore[attr-defined]
                    killed.append(busy[0])

            result = played(env, 20, beside=4, after=after)
            assert len(killed) == (2 if kill else 0)
            workers = [*env.evaluator._pool._idle, *env.evaluator._pool._busy]  # type: ignore[union-attr]
            env.close()
            assert not any(worker.process.is_alive() for worker in (*workers, *killed))  # type: ignore[attr-defined]
            return result

        undisturbed = search(kill=False, count=1)
        assert search(kill=True, count=2) == undisturbed

    def test_idle_workers_end_by_themselves(
        self, trained: torch.nn.Module, digits: DataSplits, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Killed, they leave semaphores, of which the interpreter warns as it ends."""
        monkeypatch.setattr("prune_env.evaluation.workers.GRACE", 60)
        env = FilterPruneEnv.from_model(trained, digits, SMALL, resources=Resources(backend="processes", workers=1))
        (worker,) = env.evaluator._pool._idle  # type: ignore[union-attr]
        env.close()
        assert worker.process.exitcode == 0  # type: ignore[attr-defined]

    @pytest.mark.parametrize("batches", [0, 3])
    def test_workers_answer_as_this_process_does(
        self, trained: torch.nn.Module, digits: DataSplits, batches: int
    ) -> None:
        config = replace(SMALL, finetune_batches=batches)
        env = FilterPruneEnv.from_model(trained, digits, config, resources=Resources(backend="processes", workers=1))
        plan = tuple(group.filters // 2 for group in env.groups)
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(1)
            here = FilterPruneEnv.from_model(trained, digits, config).evaluator.accuracy(plan)
        finally:
            torch.set_num_threads(threads)
        again = pickle.loads(pickle.dumps(env))  # workers stay behind, and start anew
        assert env.evaluator.accuracy(plan) == here
        assert again.evaluator.accuracy(plan) == here
        env.close()
        again.close()

    def test_metrics_travel_and_their_errors_come_back(
        self, trained: torch.nn.Module, digits: DataSplits, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings = {"config": SMALL, "evaluator": "processes", "workers": 1}
        env = FilterPruneEnv.from_model(trained, digits, metric=half, **settings)
        assert env.evaluator.accuracy((2,) * len(env.groups)) == 0.5
        env.close()
        with pytest.raises(WorkerError, match=r"metric .*lambda.* cannot be sent .* at the top of a module"):
            FilterPruneEnv.from_model(trained, digits, metric=lambda network, split: 0.5, **settings)
        tuned = settings | {"config": replace(SMALL, finetune_batches=1)}
        with pytest.raises(WorkerError, match=r"the network or loss .*lambda.* cannot be sent"):
            FilterPruneEnv.from_model(trained, digits, loss=lambda logits, images, labels: logits.mean(), **tuned)
        env = FilterPruneEnv.from_model(trained, digits, metric=failing, **settings)
        env.close()
        monkeypatch.setenv("PRUNE_ENV_TEST_FAILS", "1")
        with pytest.raises(WorkerError, match="ArithmeticError: this metric fails in workers"):
            env.evaluator.accuracy((2,) * len(env.groups))
        env.close()


@pytest.mark.slow
def test_a_ray_actor_that_dies_changes_nothing(trained: torch.nn.Module, digits: DataSplits) -> None:
    import ray

    ray.init(num_cpus=2, log_to_driver=False)
    try:
        env = FilterPruneEnv.from_model(trained, digits, SMALL, resources=Resources(backend="ray"))
        assert env.evaluator._pool._backend.count == 2  # type: ignore[union-attr]
        killed = []

        def after(turn: int) -> None:
            busy = list(env.evaluator._pool._busy)  # type: ignore[union-attr]
            if turn == 2 and not killed and busy:
                ray.kill(busy[0])
                killed.append(busy[0])

        disturbed = played(env, 20, beside=4, after=after)
        assert killed
        env.close()
        local = FilterPruneEnv.from_model(trained, digits, SMALL, resources=Resources(backend="processes", workers=1))
        assert disturbed == played(local, 20, beside=4)
        local.close()
    finally:
        ray.shutdown()


class TestEpisodesBesideEachOther:
    def test_clones_play_the_same_game(self, make_env: EnvMaker) -> None:
        alone, beside = make_env(), make_env()
        clone = beside.clone()
        assert clone.archive is beside.archive
        assert clone.evaluator is beside.evaluator
        assert played(alone, 6) == played(beside, 6, beside=3)
        for one in (beside, clone):
            one.reset(seed=1)
        beside.step({agent: 1 for agent in beside.agents})
        assert clone.plan == clone.full_plan, "a step of the one does not move the other"
        assert clone.action_space("conv_0") is not beside.action_space("conv_0")

    def test_the_two_halves_are_a_step(self, make_env: EnvMaker) -> None:
        whole, halves = make_env(), make_env()
        for env in (whole, halves):
            env.reset(seed=0)
        while whole.agents:
            actions = {agent: 2 for agent in whole.agents}
            expected = whole.step(actions)
            halves.step_async(actions)
            result = halves.step_wait()
            assert result[1:4] == expected[1:4]
            for agent in expected[0]:
                assert np.array_equal(result[0][agent], expected[0][agent])
        with pytest.raises(RuntimeError, match="call step_async"):
            halves.step_wait()

    def test_a_step_is_not_begun_twice(self, make_env: EnvMaker) -> None:
        env = make_env()
        env.reset()
        env.step_async({agent: 1 for agent in env.agents})
        with pytest.raises(RuntimeError, match="call step_wait"):
            env.step_async({agent: 2 for agent in env.agents})

    def test_where_measuring_fails_the_episode_is_over(
        self, make_env: EnvMaker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        env = make_env(rounds=1)
        env.reset()

        def fails(*_: Any) -> float:
            raise WorkerError("all workers ended")

        with monkeypatch.context() as patch:
            patch.setattr(env.evaluator, "accuracy", fails)
            with pytest.raises(WorkerError):
                env.step({agent: 1 for agent in env.agents})
        with pytest.raises(RuntimeError, match="call reset"):
            env.step({agent: 1 for agent in env.possible_agents})
        env.reset()
        env.step({agent: 1 for agent in env.agents})
        assert len(env.archive) == 1

    def test_a_reset_forgets_the_first_half(self, make_env: EnvMaker) -> None:
        env = make_env()
        env.reset()
        env.step_async({agent: 1 for agent in env.agents})
        env.reset()
        with pytest.raises(RuntimeError, match="call step_async"):
            env.step_wait()


def test_processes_are_counted_by_what_may_be_used() -> None:
    workers = backend("processes", None)
    assert isinstance(workers, Processes)
    assert workers.count == len(os.sched_getaffinity(0))
