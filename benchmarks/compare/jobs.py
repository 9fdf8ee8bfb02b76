"""Many runs, in one process or several, one row of JSON each: whatever is interrupted goes on where it stopped."""

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
"""All that a run depends on, as plain JSON."""
Question, Answer = TypeVar("Question"), TypeVar("Answer")


def complete(jobs: Sequence[Job], run: Callable[[Job], dict[str, Any]], file: Path, workers: int = 1) -> list[Job]:
    """A row {"job": job, **run(job)} for every job, in their order; those in `file` are not run again.

    workers  processes, each with one thread; `run` must then be a function of a module
    """
    known = {_key(row["job"]): row for row in rows.read_file(file)}
    missing = [job for job in jobs if _key(job) not in known]
    for job, result in tqdm(results(missing, run, workers), total=len(missing), unit="run", mininterval=1):
        known[_key(job)] = row = {"job": job, **result}
        rows.append(file, row)
    return [known[_key(job)] for job in jobs]


def results(
    jobs: Sequence[Question], run: Callable[[Question], Answer], workers: int, threads: int = 1
) -> Iterator[tuple[Question, Answer]]:
    """Each job and what `run` makes of it, as they come, from this process or from several of so many threads each."""
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
    """In a new process. One that was killed (SIGTERM, out of memory) says no word to its workers; they look."""
    torch.set_num_threads(threads)
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _key(job: Job) -> str:
    return json.dumps(job, sort_keys=True)
