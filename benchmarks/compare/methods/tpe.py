"""Tree-structured Parzen estimator (Bergstra et al. 2011) over the groups' keep ratios, by the library `optuna`."""

from __future__ import annotations

import warnings

from prune_env import FilterPruneEnv

from .counted import Counted
from .plans import from_keep_ratios
from .result import SearchResult


def search(env: FilterPruneEnv, max_plans: int, seed: int) -> SearchResult:
    """Search with the default settings, but multivariate, because the best ratios of groups depend on each other.

    Args:
        env: The environment; its evaluations are counted.
        max_plans: Distinct plans that may be evaluated.
        seed: Seed of the search.
    """
    import optuna

    chatter = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True)
        study = optuna.create_study(direction="maximize", sampler=sampler)
    finally:
        optuna.logging.set_verbosity(chatter)
    with Counted(env, max_plans) as counted:
        while True:
            trial = study.ask()
            keep = [trial.suggest_float(agent, 0.0, 1.0) for agent in env.possible_agents]
            study.tell(trial, counted.accuracy(from_keep_ratios(env, keep)))
    return counted.result()
