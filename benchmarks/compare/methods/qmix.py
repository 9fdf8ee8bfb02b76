"""QMIX, and VDN and IQL, which differ from it in the mixer; exploration ends when half of the budget is spent.

`SETTINGS` (COMPARISON.md says how they were chosen): an episode shows all there is to see, so nothing need be
remembered; plans are dear, so each is learned from more often; and returns of plans differ by little.
"""

from __future__ import annotations

from typing import Any, Literal

from prune_env import FilterPruneEnv
from qmix_agent import QMIX, QMIXConfig

from .budgeted import PROPOSALS, Budgeted
from .result import SearchResult

SETTINGS: dict[str, Any] = {"recurrent": False, "updates_per_episode": 8, "standardise_returns": True}


def search(
    problem: FilterPruneEnv, budget: int, seed: int, mixer: Literal["qmix", "vdn", "iql"] = "qmix"
) -> SearchResult:
    """The method of the comparison."""
    return learn(problem, budget, seed, mixer=mixer, **SETTINGS)


def config(budget: int, **fields: Any) -> QMIXConfig:
    """How an agent is set that may evaluate so many plans; fields of QMIXConfig, where not its defaults."""
    return QMIXConfig(**({"epsilon_episodes": max(1, budget // 2), "eval_every": 0} | fields))


def learn(problem: FilterPruneEnv, budget: int, seed: int, **fields: Any) -> SearchResult:
    """QMIX until `budget` distinct plans are evaluated, or as many episodes are played as there are proposals."""
    with Budgeted(problem, budget) as budgeted:
        QMIX(problem, config(budget, **fields), seed).learn(PROPOSALS * budget, progress=False)
    return budgeted.result()
