"""Workers as Ray actors, on this machine or on the machines of a cluster.

Connects to the cluster that the variable RAY_ADDRESS names (after `ray up` or `ray start`). Without one, Ray starts on
this machine. Network and images enter Ray's object store once; afterwards only plans and accuracies are exchanged.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Sequence
from typing import Any

import torch

from ..common.command import require_packages
from ..pruning import Plan
from .measurer import Measurer, Task
from .pool import Died, Failed, Result, WorkerError

PATIENCE = 60
"""Seconds without a result before a warning says that the cluster may be too small."""

logger = logging.getLogger(__name__)


class RayActors:
    """Ray actors with `threads` processors each, and with one GPU each if `gpu`. See `Backend` for the methods.

    Use machines of one kind: another processor may give accuracies that differ in the last bit.

    Args:
        count: Number of actors; None for as many as the cluster has room for.
        threads: Processors of each actor.
        gpu: Whether each actor needs a GPU.

    Raises:
        ImportError: Ray is not installed.
        WorkerError: The cluster cannot be reached or has no room.
    """

    def __init__(self, count: int | None = None, threads: int = 1, gpu: bool = False) -> None:
        self.threads, self.gpu = threads, gpu
        self._stored: Any = None
        self._pending: dict[Any, Any] = {}  # actor -> reference to its result
        self._connect()
        if count is None:
            resources = self._ray.cluster_resources()
            count = int(resources.get("CPU", 0)) // threads
            count = min(count, int(resources.get("GPU", 0))) if gpu else count
        if count < 1:
            raise WorkerError(f"the Ray cluster has no {'GPU' if gpu else 'processor'} for a worker; add machines")
        self.count = count

    def start(self, task: Task) -> Any:
        """Start an actor."""
        if self._stored is None:
            self._stored = self._ray.put(task)
        actor = self._ray.remote(_Actor).options(num_cpus=self.threads, num_gpus=int(self.gpu), max_restarts=0)
        return actor.remote(self._stored, self.threads)

    def send(self, worker: Any, plan: Plan) -> None:
        """Send a plan."""
        self._pending[worker] = worker.measure.remote(plan)

    def receive(self, workers: Sequence[Any]) -> list[tuple[Any, Result]]:
        """Wait for the first result and take all that are ready."""
        pending = {self._pending[worker]: worker for worker in workers}
        while not self._ray.wait(list(pending), num_returns=1, timeout=PATIENCE)[0]:
            free, total = (of().get("CPU", 0) for of in (self._ray.available_resources, self._ray.cluster_resources))
            logger.warning(
                f"none of {len(pending)} Ray workers has returned a result for {PATIENCE} s. They need "
                f"{self.threads * self.count} processors; {free:g} of {total:g} in the cluster are free"
            )
        ready, _ = self._ray.wait(list(pending), num_returns=len(pending), timeout=0)
        return [(pending[reference], self._result(self._pending.pop(pending[reference]))) for reference in ready]

    def stop(self, workers: Sequence[Any]) -> None:
        """Kill the actors."""
        for worker in workers:
            self._pending.pop(worker, None)
            if self._ray.is_initialized():
                self._ray.kill(worker)
        self._stored = None

    def _result(self, reference: Any) -> Result:
        try:
            result: Result = self._ray.get(reference)
            return result
        except self._ray.exceptions.RayActorError as error:
            return Died(str(error))

    def _connect(self) -> None:
        require_packages(["ray"], 'backend="ray"', "ray")
        import ray

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
        torch.set_num_threads(threads)
        self._task = task
        self._measurer: Measurer | None = None

    def measure(self, plan: Plan) -> Result:
        try:
            if self._measurer is None:
                self._measurer = Measurer(self._task)
            return self._measurer.accuracy(plan)
        except Exception:
            return Failed(traceback.format_exc())
