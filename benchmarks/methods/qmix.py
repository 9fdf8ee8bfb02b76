"""QMIX, with exploration that ends when half of the budget is spent."""

from __future__ import annotations

import time
from contextlib import suppress

from prune_env import FilterPruneEnv
from qmix_agent import QMIX, QMIXConfig

from .result import SearchResult


class _Spent(Exception):
    """The budget of evaluations is used up."""


def search(problem: FilterPruneEnv, budget: int, seed: int) -> SearchResult:
    """Learns until `budget` distinct plans are evaluated, or three times as many episodes are played."""
    begin = time.perf_counter()
    config = QMIXConfig(epsilon_episodes=max(1, budget // 2), eval_every=0)

    def stop(*_: object) -> None:
        if len(problem.archive) >= budget:
            raise _Spent

    with suppress(_Spent):
        QMIX(problem, config, seed).learn(3 * budget, callback=stop, progress=False)
    return SearchResult(tuple(problem.archive)[:budget], time.perf_counter() - begin)
