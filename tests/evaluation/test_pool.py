"""The pool: results do not depend on which worker dies, nor on the order in which results arrive."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prune_env.evaluation.pool import MAX_DEATHS, Died, Failed, Pool, Result, WorkerError
from prune_env.pruning import Plan


def first(size: int) -> int:
    return 0


def never(plan: Plan) -> bool:
    return False


def expected(plan: Plan) -> float:
    """Return the accuracy that the workers of these tests return."""
    return sum(plan) / 100


@dataclass
class Scripted:
    """Workers in this process."""

    count: int
    choose: Callable[[int], int] = first
    """Chooses which of so many busy workers finishes next."""
    dies: Callable[[Plan], bool] = never
    """Whether the worker of a plan dies instead of returning a result."""
    threads: int = 1
    busy: dict[Hashable, Plan] = field(default_factory=dict)
    started: int = 0
    stopped: list[Hashable] = field(default_factory=list)

    def start(self, task: Any) -> int:
        self.started += 1
        return self.started

    def send(self, worker: int, plan: Plan) -> None:
        assert worker not in self.busy, "a worker gets one plan at a time"
        self.busy[worker] = plan
        assert len(self.busy) <= self.count

    def receive(self, workers: Sequence[int]) -> list[tuple[int, Result]]:
        assert set(workers) == set(self.busy)
        worker = workers[self.choose(len(workers))]
        plan = self.busy.pop(worker)
        return [(worker, Died("as scripted") if self.dies(plan) else expected(plan))]

    def stop(self, workers: Sequence[int]) -> None:
        self.stopped += workers


def make_pool(backend: Scripted) -> Pool:
    return Pool(backend, None)  # type: ignore[arg-type]


@settings(max_examples=60)
@given(st.integers(1, 5), st.lists(st.integers(1, 50), min_size=1, max_size=20), st.data())
def test_results_depend_neither_on_the_number_of_workers_nor_on_order_nor_on_deaths(
    count: int, numbers: list[int], data: st.DataObject
) -> None:
    deaths: dict[Plan, int] = {}

    def dies(plan: Plan) -> bool:
        dead = deaths.get(plan, 0) < MAX_DEATHS - 1 and data.draw(st.booleans())
        deaths[plan] = deaths.get(plan, 0) + dead
        return dead

    backend = Scripted(count, lambda size: data.draw(st.integers(0, size - 1)), dies)
    pool = make_pool(backend)
    plans = [(number,) for number in numbers]
    for plan in plans:
        pool.submit(plan)
    wanted = data.draw(st.permutations(list(dict.fromkeys(plans))))
    assert [pool.result(plan) for plan in wanted] == [expected(plan) for plan in wanted]
    assert backend.started <= count + sum(deaths.values())


def test_a_plan_that_kills_its_workers_is_given_up() -> None:
    pool = make_pool(Scripted(2, dies=lambda plan: plan == (7,)))
    pool.submit((1,))
    with pytest.raises(WorkerError, match=rf"{MAX_DEATHS} .*\(7,\).*as scripted"):
        pool.result((7,))
    assert pool.result((1,)) == 0.01, "the pool works afterwards"


def test_the_death_of_idle_workers_does_not_count_against_a_plan() -> None:
    """Something has killed all workers while they were idle; only new workers survive."""
    backend = Scripted(4)
    pool = make_pool(backend)
    for number in range(4):
        pool.submit((number,))
    assert [pool.result((number,)) for number in range(4)] == [0.0, 0.01, 0.02, 0.03]
    dead, receive = set(range(1, backend.started + 1)), backend.receive

    def receive_from_the_living(workers: Sequence[int]) -> list[tuple[int, Result]]:
        if workers[0] in dead:
            del backend.busy[workers[0]]
            return [(workers[0], Died("while it was idle"))]
        return receive(workers)

    backend.receive = receive_from_the_living  # type: ignore[method-assign]
    assert pool.result((9,)) == 0.09
    assert dead - set(backend.stopped) == {4}, "idle workers are stopped; the fourth was the one that died"


@pytest.mark.parametrize("where", ["start", "send", "receive"])
def test_a_plan_can_be_submitted_again_after_an_error(where: str) -> None:
    backend = Scripted(1)
    pool, works = make_pool(backend), getattr(backend, where)

    def breaks(*_: Any) -> Any:
        setattr(backend, where, works)
        raise OSError("no more processes")

    setattr(backend, where, breaks)
    with pytest.raises(OSError, match="no more processes"):
        pool.result((4,))
    backend.busy.clear()
    assert pool.result((4,)) == 0.04


def test_the_pool_starts_new_workers_after_an_interrupted_close() -> None:
    backend = Scripted(1)
    pool = make_pool(backend)
    assert pool.result((4,)) == 0.04

    def interrupted(_: Any) -> None:
        raise KeyboardInterrupt

    backend.stop = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        pool.close()
    assert pool.result((5,)) == 0.05
    assert backend.started == 2


def test_close_stops_all_workers_and_the_pool_starts_new_ones() -> None:
    backend = Scripted(2)
    pool = make_pool(backend)
    pool.submit((1,)), pool.submit((2,))
    pool.result((1,))
    pool.close()
    assert sorted(backend.stopped) == [1, 2]
    backend.busy.clear()
    assert pool.result((2,)) == 0.02
    assert backend.started == 3


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda pool: pickle.loads(pickle.dumps(pool))])
def test_copies_have_workers_of_their_own(duplicate: Callable[[Pool], Pool]) -> None:
    backend = Scripted(1)
    pool = make_pool(backend)
    pool.result((1,))
    twin = duplicate(pool)
    assert twin.result((2,)) == 0.02
    twin.close()
    assert pool.result((3,)) == 0.03
    assert (backend.started, backend.stopped) == (1, [])


def test_an_exception_in_a_worker_is_raised_with_its_traceback() -> None:
    backend = Scripted(1)
    backend.receive = lambda workers: [(workers[0], Failed("ZeroDivisionError: in the metric"))]  # type: ignore
    with pytest.raises(WorkerError, match=r"\(1,\).*\n.*ZeroDivisionError: in the metric"):
        make_pool(backend).result((1,))
    assert backend.stopped == [1], "no worker is left running"
