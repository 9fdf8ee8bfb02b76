"""Search methods, one file each, with one signature: search(env, max_plans, seed) -> SearchResult.

`max_plans` is the number of distinct plans that a search may evaluate. Optional packages are imported by the searches
that need them, not by this module.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

from prune_env import FilterPruneEnv

from . import amc, dqn, evolution, least_change, magnitude, ppo, qmix, random_search, sensitivity, tpe, uniform
from .result import SearchResult

METHODS: dict[str, Callable[[FilterPruneEnv, int, int], SearchResult]] = {
    "uniform": uniform.search,
    "magnitude": magnitude.search,
    "least_change": least_change.search,
    "sensitivity": sensitivity.search,
    "random": random_search.search,
    "evolution": evolution.search,
    "evolution_least_change": evolution.from_least_change,
    "tpe": tpe.search,
    "amc": amc.search,
    "amc_ls": partial(amc.search, reconstruct=True),
    "ppo": ppo.search,
    "dqn": dqn.search,
    "iql": partial(qmix.search, mixer="iql"),
    "vdn": partial(qmix.search, mixer="vdn"),
    "qmix": qmix.search,
}

NEEDS = {
    "evolution": ["cma"],
    "evolution_least_change": ["cma"],
    "tpe": ["optuna"],
    "ppo": ["stable_baselines3"],
    "dqn": ["stable_baselines3"],
}
"""Method -> optional packages that it imports."""
ONE_PLAN = ("uniform", "magnitude", "least_change", "sensitivity")
"""Methods whose only plan depends on the problem alone: seeds and more evaluations change nothing."""
LEARNERS = ("iql", "vdn", "qmix")
"""Methods of qmix_agent."""
IRRELEVANT = ("checkpoint_every", "keep_checkpoints")
"""Settings of QMIXConfig that change no result."""


def method_settings(method: str, max_plans: int) -> dict[str, Any]:
    """Return the settings of a method that its row records: the fields of QMIXConfig for learners, else none."""
    if method not in LEARNERS:
        return {}
    settings = dataclasses.asdict(qmix.config(max_plans, mixer=method, **qmix.SETTINGS))
    return {name: value for name, value in settings.items() if name not in IRRELEVANT}
