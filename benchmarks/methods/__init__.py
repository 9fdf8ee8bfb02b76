"""Search methods, one file each, with one signature: search(problem, budget, seed) -> SearchResult."""

from __future__ import annotations

from collections.abc import Callable

from prune_env import FilterPruneEnv

from . import qmix, random_search, uniform
from .result import SearchResult

METHODS: dict[str, Callable[[FilterPruneEnv, int, int], SearchResult]] = {
    "uniform": uniform.search,
    "random": random_search.search,
    "qmix": qmix.search,
}
