"""A pool of measurers in other processes, or on other machines, that answers as one would.

The pool hands out one plan at a time to each worker, gives those of a worker that died to another, and starts a new
one in its place. Every worker computes with the same number of threads whatever their number, so that on machines of
one kind answers depend neither on it nor on the order in which they arrive.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import tempfile
import time
import traceback
import weakref
from collections import Counter, deque
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import torch

from ..common.fingerprints import qualified_name
from ..pruning import Plan
from .measurer import Measurer, Task
from .racing import Race

EvaluatorKind = Literal["local", "processes", "ray"]
"""Where plans are measured."""

TRIES = 3
"""Workers that may die over one plan."""
GRACE = 1.0
"""Seconds in which workers may end by themselves."""

Question = tuple[Plan, Race | None]


@dataclass(frozen=True)
class Failed:
    """A measurement raised: the traceback, as text."""

    traceback: str


@dataclass(frozen=True)
class Died:
    """A worker is gone: why, as far as is known."""

    reason: str


Answer = float | Failed | Died


class Backend(Protocol):
    """Where workers live."""

    count: int
    threads: int
    """Of each worker."""

    def start(self, task: Task) -> Hashable:
        """A new worker, which gets the task before anything else."""

    def ask(self, worker: Any, question: Question) -> None:
        """Sends a question; a worker that has died is found out by `answers`."""

    def answers(self, workers: Sequence[Any]) -> list[tuple[Any, Answer]]:
        """Waits until at least one of the workers, all of which were asked, has answered or died."""

    def stop(self, workers: Sequence[Any]) -> None:
        """Ends workers, in a second or so."""


class WorkerError(RuntimeError):
    """Workers died, or a measurement failed in one."""


class Pool:
    """Workers start with the first question, and again after `close` or unpickling."""

    def __init__(self, backend: Backend, task: Task) -> None:
        self._backend, self._task = backend, task
        self._reset()

    def submit(self, plan: Plan, race: Race | None = None) -> None:
        """Asks for a plan; nothing happens if that was done already."""
        question = plan, race
        if question in self._asked:
            return
        self._asked.add(question)
        self._waiting.append(question)
        with self._forgetting():
            self._hand_out()

    def result(self, plan: Plan, race: Race | None = None) -> float:
        """The accuracy of a plan, once. Raises WorkerError."""
        self.submit(plan, race)
        question = plan, race
        with self._forgetting():
            while question not in self._answered:
                self._collect()
        self._asked.remove(question)
        return self._answered.pop(question)

    def close(self) -> None:
        """Ends the workers and forgets what was asked."""
        workers = [*self._idle, *self._busy]
        self._reset()
        self._backend.stop(workers)

    @contextmanager
    def _forgetting(self) -> Iterator[None]:
        """After an error everything is forgotten, so that a later question starts afresh."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def _reset(self) -> None:
        self._asked: set[Question] = set()
        self._waiting: deque[Question] = deque()
        self._answered: dict[Question, float] = {}
        self._idle: list[Hashable] = []
        self._busy: dict[Hashable, Question] = {}
        self._deaths: Counter[Question] = Counter()

    def _hand_out(self) -> None:
        while self._waiting and (self._idle or len(self._busy) < self._backend.count):
            worker = self._idle.pop() if self._idle else self._backend.start(self._task)
            self._busy[worker] = self._waiting.popleft()
            self._backend.ask(worker, self._busy[worker])

    def _collect(self) -> None:
        for worker, answer in self._backend.answers(list(self._busy)):
            question = self._busy.pop(worker)
            if isinstance(answer, Died):
                self._deaths[question] += 1
                if self._deaths[question] == TRIES:
                    raise WorkerError(
                        f"{TRIES} workers ended while they measured plan {question[0]}; the last: {answer.reason}"
                    )
                self._waiting.appendleft(question)
                # What ended one may have ended those that wait: the plan must not be blamed for their death.
                self._backend.stop(self._idle)
                self._idle.clear()
                continue
            self._idle.append(worker)
            if isinstance(answer, Failed):
                raise WorkerError(f"plan {question[0]} could not be measured; in the worker:\n{answer.traceback}")
            self._answered[question] = answer
        self._hand_out()

    def __getstate__(self) -> dict[str, Any]:
        return {"_backend": self._backend, "_task": self._task}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()


@dataclass(eq=False)
class _Process:
    process: Any
    connection: Connection


@dataclass
class Processes:
    """Workers as processes of this machine, started afresh (spawn), with `threads` threads each."""

    count: int
    threads: int = 1
    _folder: str | None = field(default=None, repr=False)
    """Of the file with the task, which every worker reads; a pipe would make the next one wait."""

    def start(self, task: Task) -> _Process:
        """Raises WorkerError where the task cannot be sent."""
        if self._folder is None:
            pickled, folder = _pickled(task), tempfile.mkdtemp(prefix="prune_env-")
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            Path(folder, "task").write_bytes(pickled)
            self._folder = folder
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        arguments = (theirs, os.path.join(self._folder, "task"), self.threads)
        process = context.Process(target=_serve, args=arguments, daemon=True, name="prune_env worker")
        process.start()
        theirs.close()
        return _Process(process, ours)

    def ask(self, worker: _Process, question: Question) -> None:
        """See `Backend`."""
        with suppress(OSError):  # it has died, which `answers` will tell
            worker.connection.send(question)

    def answers(self, workers: Sequence[_Process]) -> list[tuple[_Process, Answer]]:
        """See `Backend`."""
        ready = set(wait([worker.connection for worker in workers]))
        return [(worker, self._receive(worker)) for worker in workers if worker.connection in ready]

    def stop(self, workers: Sequence[_Process]) -> None:
        """See `Backend`. Who has nothing to do ends by itself: killed, it would leave semaphores (tqdm's) behind."""
        for worker in workers:
            worker.connection.close()
        until = time.monotonic() + GRACE
        try:
            for worker in workers:
                worker.process.join(max(0.0, until - time.monotonic()))
        finally:  # Ctrl-C may come meanwhile
            for worker in workers:
                worker.process.kill()
        for worker in workers:
            worker.process.join()

    def __getstate__(self) -> dict[str, Any]:
        return {"count": self.count, "threads": self.threads, "_folder": None}

    def _receive(self, worker: _Process) -> Answer:
        try:
            answer: Answer = worker.connection.recv()
            return answer
        except (EOFError, OSError):
            worker.connection.close()
            worker.process.join(timeout=5)
            code = worker.process.exitcode
            worker.process.kill()
            worker.process.join()
            if code is not None and code < 0:
                return Died(f"killed by signal {-code}. Signal 9 often means too little memory: take fewer workers")
            return Died(
                f"exit code {code}. If they ended at once: a script that uses worker processes needs `if __name__ == "
                '"__main__":` around what it runs'
            )


def _pickled(task: Task) -> bytes:
    try:
        return pickle.dumps(task)
    except Exception as error:
        functions = {"metric": task.metric, "loss": task.tuning and task.tuning.loss}
        own = "".join(f" or {kind} {qualified_name(one)}" for kind, one in functions.items() if one is not None)
        raise WorkerError(
            f"the network{own} cannot be sent to worker processes ({type(error).__name__}: {error}); define its "
            'class and functions at the top of a module, or take evaluator="local"'
        ) from error


def _serve(connection: Connection, task: str, threads: int) -> None:
    """A worker's life: questions about the task in a file, until the connection closes."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    torch.set_num_threads(threads)
    measurer: Measurer | None = None
    with suppress(EOFError, OSError):  # the parent is gone, or has no more questions
        while True:
            question: Question = connection.recv()
            answer: Answer
            try:
                if measurer is None:
                    measurer = Measurer(pickle.loads(Path(task).read_bytes()))
                answer = measurer.accuracy(*question)
            except Exception:
                answer = Failed(traceback.format_exc())
            connection.send(answer)


def backend(kind: EvaluatorKind, workers: int | None, device: str = "cpu") -> Backend | None:
    """What `evaluator` and `workers` of an environment mean; None for this process."""
    if kind == "local":
        if workers is not None:
            raise ValueError(f'workers={workers} needs evaluator="processes" or "ray"')
        return None
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be a whole number of at least 1, got {workers}")
    if kind == "processes":
        affinity = getattr(os, "sched_getaffinity", None)
        return Processes(workers or (len(affinity(0)) if affinity else os.cpu_count() or 1))
    if kind == "ray":
        from .ray_workers import RayActors

        return RayActors(workers, gpu=device.startswith("cuda"))
    raise ValueError(f"evaluator {kind!r} is unknown; choose one of {', '.join(get_args(EvaluatorKind))}")
