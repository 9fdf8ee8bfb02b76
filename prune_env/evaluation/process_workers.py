"""Workers as processes of this machine."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import sys
import tempfile
import time
import traceback
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..common.fingerprints import qualified_name
from ..pruning import Plan
from .measurer import Measurer, Task
from .pool import Died, Failed, Result, WorkerError

GRACE = 1.0
"""Seconds that idle workers get to end by themselves."""


@dataclass(eq=False)
class _Process:
    process: Any
    connection: Connection


@dataclass
class Processes:
    """Worker processes, started by `spawn`. See `Backend` for the methods.

    Attributes:
        count: Number of processes.
        threads: Threads of each process.
    """

    count: int
    threads: int = 1
    _folder: str | None = field(default=None, repr=False)
    """Folder of the file with the pickled task, which every worker reads. A pipe would make the next worker wait."""

    def start(self, task: Task) -> _Process:
        """Start a worker.

        Raises:
            WorkerError: The task cannot be pickled.
        """
        if self._folder is None:
            pickled, folder = _pickled(task), tempfile.mkdtemp(prefix="prune_env-")
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            Path(folder, "task").write_bytes(pickled)
            Path(folder, "sources").write_text(json.dumps(_sources(task.model)))
            self._folder = folder
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        arguments = (theirs, os.path.join(self._folder, "task"), self.threads)
        process = context.Process(target=_serve, args=arguments, daemon=True, name="prune_env worker")
        process.start()
        theirs.close()
        return _Process(process, ours)

    def send(self, worker: _Process, plan: Plan) -> None:
        """Send a plan."""
        with suppress(OSError):  # `receive` reports a dead worker
            worker.connection.send(plan)

    def receive(self, workers: Sequence[_Process]) -> list[tuple[_Process, Result]]:
        """Wait for at least one worker."""
        ready = set(wait([worker.connection for worker in workers]))
        return [(worker, _result(worker)) for worker in workers if worker.connection in ready]

    def stop(self, workers: Sequence[_Process]) -> None:
        """End workers. Idle ones end by themselves: killed processes would leak the semaphores of tqdm."""
        for worker in workers:
            worker.connection.close()
        until = time.monotonic() + GRACE
        try:
            for worker in workers:
                worker.process.join(max(0.0, until - time.monotonic()))
        finally:  # also on Ctrl-C
            for worker in workers:
                worker.process.kill()
        for worker in workers:
            worker.process.join()

    def __getstate__(self) -> dict[str, Any]:
        return {"count": self.count, "threads": self.threads, "_folder": None}


def _result(worker: _Process) -> Result:
    try:
        result: Result = worker.connection.recv()
        return result
    except (EOFError, OSError):
        worker.connection.close()
        worker.process.join(timeout=5)
        code = worker.process.exitcode
        worker.process.kill()
        worker.process.join()
        if code is not None and code < 0:
            return Died(f"killed by signal {-code}. Signal 9 often means too little memory: use fewer workers")
        return Died(
            f"exit code {code}. If workers end at once: a script that starts worker processes needs `if __name__ == "
            '"__main__":` around its code'
        )


def _pickled(task: Task) -> bytes:
    try:
        return pickle.dumps(task)
    except Exception as error:
        functions = {"metric": task.metric, "loss": task.finetuner and task.finetuner.loss}
        custom = "".join(f" or {kind} {qualified_name(one)}" for kind, one in functions.items() if one is not None)
        raise WorkerError(
            f"the network{custom} cannot be sent to worker processes ({type(error).__name__}: {error}); define its "
            'class and functions at the top level of a module, or use backend="local"'
        ) from error


def _sources(model: nn.Module) -> dict[str, str]:
    """Return the files of the modules that define the network's classes, by the modules' names.

    A worker does not find those that were loaded from a file, or from a folder that only this process searches.
    """
    names = {type(module).__module__ for module in model.modules()}
    files = {name: getattr(sys.modules.get(name), "__file__", None) for name in names if "." not in name}
    return {name: os.path.abspath(file) for name, file in files.items() if file and name != "__main__"}


def _import_sources(sources: Mapping[str, str]) -> None:
    """Import modules from their files, unless they are found by their names."""
    for name, file in sources.items():
        if importlib.util.find_spec(name) is None:
            spec = importlib.util.spec_from_file_location(name, file)
            assert spec is not None
            assert spec.loader is not None
            module = sys.modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)


def _serve(connection: Connection, task: str, threads: int) -> None:
    """Measure plans until the connection closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    torch.set_num_threads(threads)
    measurer: Measurer | None = None
    with suppress(EOFError, OSError):  # the parent ended or closed the connection
        while True:
            plan: Plan = connection.recv()
            result: Result
            try:
                if measurer is None:
                    _import_sources(json.loads(Path(task).with_name("sources").read_text()))
                    measurer = Measurer(pickle.loads(Path(task).read_bytes()))
                result = measurer.accuracy(plan)
            except Exception:
                result = Failed(traceback.format_exc())
            connection.send(result)
