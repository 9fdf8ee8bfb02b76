"""Workers as Ray actors: on this machine, or on all machines of a cluster.

Joins the cluster that the variable RAY_ADDRESS names (after `ray up` or `ray start`), and starts Ray on this machine
where there is none. Network and images are put into the object store once; plans go out, numbers come back.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Sequence
from typing import Any

from .measurer import Measurer, Task
from .workers import Answer, Died, Failed, Question, WorkerError

PATIENCE = 60
"""Seconds without any answer, after which a warning says that the cluster may be too small."""

logger = logging.getLogger(__name__)


class RayActors:
    """Actors of `threads` processors each, and a GPU if they need one; `count` None takes as many as there is room for.

    The machines should be of one kind: another processor may answer differently in the last bit.
    """

    def __init__(self, count: int | None = None, threads: int = 1, gpu: bool = False) -> None:
        """Raises WorkerError without the package, or where the cluster cannot be reached or has no room."""
        self.threads, self.gpu = threads, gpu
        self._stored: Any = None
        self._pending: dict[Any, Any] = {}  # actor -> what it was asked
        self._connect()
        if count is None:
            there = self._ray.cluster_resources()
            count = int(there.get("CPU", 0)) // threads
            count = min(count, int(there.get("GPU", 0))) if gpu else count
        if count < 1:
            raise WorkerError(f"the Ray cluster has no {'GPU' if gpu else 'processor'} for a worker; add machines")
        self.count = count

    def start(self, task: Task) -> Any:
        """A new actor."""
        if self._stored is None:
            self._stored = self._ray.put(task)
        actor = self._ray.remote(_Actor).options(num_cpus=self.threads, num_gpus=int(self.gpu), max_restarts=0)
        return actor.remote(self._stored, self.threads)

    def ask(self, worker: Any, question: Question) -> None:
        """Sends a question."""
        self._pending[worker] = worker.answer.remote(*question)

    def answers(self, workers: Sequence[Any]) -> list[tuple[Any, Answer]]:
        """Waits for the first, and takes all that are there."""
        asked = {self._pending[worker]: worker for worker in workers}
        while not self._ray.wait(list(asked), num_returns=1, timeout=PATIENCE)[0]:
            free, there = (of().get("CPU", 0) for of in (self._ray.available_resources, self._ray.cluster_resources))
            logger.warning(
                f"none of {len(asked)} Ray workers has answered for {PATIENCE} s; is the cluster short of processors? "
                f"They need {self.threads * self.count}, and {free:g} of {there:g} are free"
            )
        ready, _ = self._ray.wait(list(asked), num_returns=len(asked), timeout=0)
        return [(asked[reference], self._answer(self._pending.pop(asked[reference]))) for reference in ready]

    def stop(self, workers: Sequence[Any]) -> None:
        """Kills the actors."""
        for worker in workers:
            self._pending.pop(worker, None)
            if self._ray.is_initialized():
                self._ray.kill(worker)
        self._stored = None

    def _answer(self, reference: Any) -> Answer:
        try:
            answer: Answer = self._ray.get(reference)
            return answer
        except self._ray.exceptions.RayActorError as error:
            return Died(str(error))

    def _connect(self) -> None:
        try:
            import ray
        except ImportError as error:
            raise WorkerError('evaluator="ray" needs the package ray: pip install "prune-env[ray]"') from error
        self._ray: Any = ray
        if not ray.is_initialized():
            try:
                ray.init(log_to_driver=False)
            except ConnectionError as error:
                raise WorkerError(f"the Ray cluster of RAY_ADDRESS cannot be reached: {error}") from error

    def __getstate__(self) -> dict[str, Any]:
        return {"threads": self.threads, "gpu": self.gpu, "count": self.count, "_stored": None, "_pending": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._connect()


class _Actor:
    def __init__(self, task: Task, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._task = task
        self._measurer: Measurer | None = None

    def answer(self, *question: Any) -> Answer:
        try:
            if self._measurer is None:
                self._measurer = Measurer(self._task)
            return self._measurer.accuracy(*question)
        except Exception:
            return Failed(traceback.format_exc())
