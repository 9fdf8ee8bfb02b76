"""Run many jobs, in one process or several, with one JSON row each. An interrupted command resumes."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from . import rows

Job = dict[str, Any]
"""Everything that a run depends on, as plain JSON."""
AnyJob, Result = TypeVar("AnyJob"), TypeVar("Result")


def complete(jobs: Sequence[Job], run: Callable[[Job], dict[str, Any]], file: Path, workers: int = 1) -> list[Job]:
    """Return a row {"job": job, **run(job)} for every job, in order. Jobs with a row in `file` are not run again.

    Args:
        jobs: The jobs.
        run: Runs one job; with several workers it must be a function of a module.
        file: The file of the rows.
        workers: Number of processes, each with one thread.
    """
    known = {_key(row["job"]): row for row in rows.read_file(file)}
    missing = [job for job in jobs if _key(job) not in known]
    for job, result in tqdm(results(missing, run, workers), total=len(missing), unit="run", mininterval=1):
        known[_key(job)] = row = {"job": job, **result}
        rows.append(file, row)
    return [known[_key(job)] for job in jobs]


def results(
    jobs: Sequence[AnyJob], run: Callable[[AnyJob], Result], workers: int, threads: int = 1
) -> Iterator[tuple[AnyJob, Result]]:
    """Yield each job and its result as they finish.

    Args:
        jobs: The jobs.
        run: Runs one job; with several workers it must be a function of a module.
        workers: Number of processes; 1 for this one.
        threads: Threads of each process, if there are several.
    """
    if workers == 1:
        for job in jobs:
            yield job, run(job)
        return
    context = get_context("spawn")  # CUDA does not survive a fork
    with ProcessPoolExecutor(workers, context, _begin, (threads,)) as pool:
        futures = {pool.submit(run, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin(threads: int) -> None:
    """Set up a worker. It watches its parent, because a killed parent cannot end its workers."""
    torch.set_num_threads(threads)
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _key(job: Job) -> str:
    return json.dumps(job, sort_keys=True)
