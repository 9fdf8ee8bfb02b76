"""QMIX, and VDN and IQL, which differ from it in the mixer; exploration ends when half of the budget is spent."""

from __future__ import annotations

from typing import Literal

from prune_env import FilterPruneEnv
from qmix_agent import QMIX, QMIXConfig

from .budgeted import PROPOSALS, Budgeted
from .result import SearchResult


def search(
    problem: FilterPruneEnv, budget: int, seed: int, mixer: Literal["qmix", "vdn", "iql"] = "qmix"
) -> SearchResult:
    """Learns until `budget` distinct plans are evaluated, or as many episodes are played as there are proposals."""
    config = QMIXConfig(mixer=mixer, epsilon_episodes=max(1, budget // 2), eval_every=0)
    with Budgeted(problem, budget) as budgeted:
        QMIX(problem, config, seed).learn(PROPOSALS * budget, progress=False)
    return budgeted.result()
