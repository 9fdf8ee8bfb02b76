"""Many runs, one row of JSON each: whatever is interrupted goes on where it stopped. And means with intervals."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, variance
from typing import Any

import torch
from tqdm import tqdm

Job = dict[str, Any]
"""All that a run depends on, as plain JSON."""


def complete(jobs: Sequence[Job], run: Callable[[Job], dict[str, Any]], file: Path, workers: int = 1) -> list[Job]:
    """A row {"job": job, **run(job)} for every job, in their order; those in `file` are not run again.

    workers  processes, each with one thread; `run` must then be a function of a module
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = file.read_text().splitlines() if file.is_file() else []
    rows = {_key(row["job"]): row for row in map(json.loads, lines)}
    missing = [job for job in jobs if _key(job) not in rows]
    with file.open("a") as out:
        for job, result in tqdm(_results(missing, run, workers), total=len(missing), unit="run", mininterval=1):
            rows[_key(job)] = row = {"job": job, **result}
            out.write(json.dumps(row) + "\n")
            out.flush()
    return [rows[_key(job)] for job in jobs]


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Mean and half the width of its confidence interval (Student's t); nan for a single value."""
    from scipy.stats import t

    count = len(values)
    if count < 2:
        return fmean(values), math.nan
    return fmean(values), float(t.ppf(0.5 + confidence / 2, count - 1)) * math.sqrt(variance(values) / count)


def difference_interval(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """mean(a) - mean(b) and half the width of its interval, for unequal variances (Welch 1947)."""
    from scipy.stats import t

    errors = [variance(values) / len(values) for values in (a, b)]
    if sum(errors) == 0:
        return fmean(a) - fmean(b), 0.0
    freedom = sum(errors) ** 2 / sum(e**2 / (len(values) - 1) for e, values in zip(errors, (a, b), strict=True))
    return fmean(a) - fmean(b), float(t.ppf(0.5 + confidence / 2, freedom)) * math.sqrt(sum(errors))


def _results(
    jobs: Sequence[Job], run: Callable[[Job], dict[str, Any]], workers: int
) -> Iterator[tuple[Job, dict[str, Any]]]:
    if workers == 1:
        for job in jobs:
            yield job, run(job)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        futures = {pool.submit(run, job): job for job in jobs}
        for future in as_completed(futures):
            yield futures[future], future.result()


def _key(job: Job) -> str:
    return json.dumps(job, sort_keys=True)
