"""CMA-ES (Hansen & Ostermeier 2001) over the groups' keep ratios, by the library `cma` with its default settings."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NoReturn

import numpy as np

from prune_env import FilterPruneEnv
from prune_env.pruning import Plan

from . import least_change
from .counted import Counted
from .plans import from_keep_ratios
from .result import SearchResult

STEP = 0.2
"""Initial standard deviation of a keep ratio."""


def search(env: FilterPruneEnv, max_plans: int, seed: int, start: Plan | None = None) -> SearchResult:
    """Search from a plan, and restart there when CMA-ES has converged and evaluations are left.

    Args:
        env: The environment; its evaluations are counted.
        max_plans: Distinct plans that may be evaluated.
        seed: Seed of the search.
        start: The plan to start from; None for the uniform plan.
    """
    with Counted(env, max_plans) as counted:
        keep_ratios = np.array(start or env.budget.uniform()) / env.problem.full_plan
        maximise(lambda keep: counted.accuracy(from_keep_ratios(env, keep)), keep_ratios, seed)
    return counted.result()


def from_least_change(env: FilterPruneEnv, max_plans: int, seed: int) -> SearchResult:
    """Search from the least-change plan."""
    return search(env, max_plans, seed, least_change.plan(env))


def maximise(fitness: Callable[[np.ndarray], float], start: np.ndarray, seed: int) -> NoReturn:
    """Maximise a function of keep ratios [G] in [0, 1], until it raises an exception."""
    import cma

    rng = np.random.default_rng(seed)
    while True:
        # cma would seed NumPy's global generator; the seed NaN prevents that.
        options = {"seed": np.nan, "randn": lambda *shape: rng.standard_normal(shape), "bounds": [0, 1]}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about missing plots and about a start at a bound
            strategy = cma.CMAEvolutionStrategy(start, STEP, {**options, "verbose": -9})
        while not strategy.stop():
            candidates = strategy.ask()
            strategy.tell(candidates, [-fitness(candidate) for candidate in candidates])
