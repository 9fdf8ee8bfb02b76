"""A pool of workers that measure plans in other processes or on other machines.

The pool gives each worker one plan at a time. When a worker dies, its plan goes to another worker and a new worker
replaces it. Every worker computes with the same number of threads, however many workers there are. On machines of one
kind an accuracy therefore depends neither on the number of workers nor on the order in which results arrive.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from ..pruning import Plan
from .measurer import Task

MAX_DEATHS = 3
"""Give up on a plan after this many workers died while measuring it."""


@dataclass(frozen=True)
class Failed:
    """A measurement raised an exception in the worker."""

    traceback: str


@dataclass(frozen=True)
class Died:
    """A worker ended."""

    reason: str


Result = float | Failed | Died


class WorkerError(RuntimeError):
    """Workers died, a measurement failed in a worker, or workers cannot be started."""


class Backend(Protocol):
    """Starts workers and exchanges messages with them."""

    count: int
    """Number of workers."""
    threads: int
    """Threads of each worker."""

    def start(self, task: Task) -> Hashable:
        """Start a worker and send it the task."""

    def send(self, worker: Any, plan: Plan) -> None:
        """Send a plan to a worker. A dead worker is noticed by `receive`, not here."""

    def receive(self, workers: Sequence[Any]) -> list[tuple[Any, Result]]:
        """Wait until at least one of the workers, each of which has a plan, has finished or died."""

    def stop(self, workers: Sequence[Any]) -> None:
        """End workers, within about a second."""


class Pool:
    """Measures plans by the workers of a backend.

    Workers start with the first plan, and start again after `close` or after unpickling.
    """

    def __init__(self, backend: Backend, task: Task) -> None:
        self._backend, self._task = backend, task
        self._reset()

    def submit(self, plan: Plan) -> None:
        """Queue a plan. A plan that is queued already is not queued twice."""
        if plan in self._submitted:
            return
        self._submitted.add(plan)
        self._waiting.append(plan)
        with self._closing_on_error():
            self._hand_out()

    def result(self, plan: Plan) -> float:
        """Return the accuracy of a plan and forget it.

        Raises:
            WorkerError: The measurement failed, or too many workers died during it.
        """
        self.submit(plan)
        with self._closing_on_error():
            while plan not in self._finished:
                self._collect()
        self._submitted.remove(plan)
        return self._finished.pop(plan)

    def close(self) -> None:
        """End the workers and forget all plans."""
        workers = [*self._idle, *self._busy]
        self._reset()
        self._backend.stop(workers)

    @contextmanager
    def _closing_on_error(self) -> Iterator[None]:
        """Close the pool after any error, so that the next plan starts with fresh workers."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def _reset(self) -> None:
        self._submitted: set[Plan] = set()
        self._waiting: deque[Plan] = deque()
        self._finished: dict[Plan, float] = {}
        self._idle: list[Hashable] = []
        self._busy: dict[Hashable, Plan] = {}
        self._deaths: Counter[Plan] = Counter()

    def _hand_out(self) -> None:
        while self._waiting and (self._idle or len(self._busy) < self._backend.count):
            worker = self._idle.pop() if self._idle else self._backend.start(self._task)
            self._busy[worker] = self._waiting.popleft()
            self._backend.send(worker, self._busy[worker])

    def _collect(self) -> None:
        for worker, result in self._backend.receive(list(self._busy)):
            plan = self._busy.pop(worker)
            if isinstance(result, Died):
                self._deaths[plan] += 1
                if self._deaths[plan] == MAX_DEATHS:
                    raise WorkerError(
                        f"{MAX_DEATHS} workers died while they measured plan {plan}; the last: {result.reason}"
                    )
                self._waiting.appendleft(plan)
                # The cause may have ended the idle workers as well. Their death must not count against this plan.
                self._backend.stop(self._idle)
                self._idle.clear()
                continue
            self._idle.append(worker)
            if isinstance(result, Failed):
                raise WorkerError(f"plan {plan} could not be measured; in the worker:\n{result.traceback}")
            self._finished[plan] = result
        self._hand_out()

    def __getstate__(self) -> dict[str, Any]:
        return {"_backend": self._backend, "_task": self._task}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()
