"""Tree-structured Parzen estimator (Bergstra et al. 2011) over the groups' keep ratios, by the library `optuna`."""

from __future__ import annotations

import warnings

from prune_env import FilterPruneEnv

from .budgeted import Budgeted
from .plans import from_keep_ratios
from .result import SearchResult


def search(problem: FilterPruneEnv, budget: int, seed: int) -> SearchResult:
    """The library's settings, multivariate: groups trade filters, so their ratios depend on each other."""
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
    with Budgeted(problem, budget) as budgeted:
        while True:
            trial = study.ask()
            keep = [trial.suggest_float(agent, 0.0, 1.0) for agent in problem.possible_agents]
            study.tell(trial, budgeted.accuracy(from_keep_ratios(problem, keep)))
    return budgeted.result()
