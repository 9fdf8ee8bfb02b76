"""QMIX, and VDN and IQL, which differ from it in the mixer; exploration ends when half of the budget is spent.

`SETTINGS` (chosen as in docs/benchmarks/comparison.md): an episode shows all there is to see, so nothing need be
remembered; plans are dear, so each is learned from more often; and returns of plans differ by little.
"""

from __future__ import annotations

from typing import Any, Literal

from prune_env import FilterPruneEnv
from qmix_agent import QMIX, QMIXConfig

from .counted import PROPOSALS, Counted
from .result import SearchResult

SETTINGS: dict[str, Any] = {"recurrent": False, "updates_per_episode": 8, "standardise_returns": True}


def search(
    env: FilterPruneEnv, max_plans: int, seed: int, mixer: Literal["qmix", "vdn", "iql"] = "qmix"
) -> SearchResult:
    """The method of the comparison."""
    return learn(env, max_plans, seed, mixer=mixer, **SETTINGS)


def config(max_plans: int, **fields: Any) -> QMIXConfig:
    """How an agent is set that may evaluate so many plans; fields of QMIXConfig, where not its defaults."""
    return QMIXConfig(**({"epsilon_episodes": max(1, max_plans // 2), "eval_every": 0} | fields))


def learn(env: FilterPruneEnv, max_plans: int, seed: int, **fields: Any) -> SearchResult:
    """QMIX until `max_plans` distinct plans are evaluated, or as many episodes are played as there are proposals."""
    with Counted(env, max_plans) as counted:
        QMIX(counted.env, config(max_plans, **fields), seed).learn(PROPOSALS * max_plans, progress=False)
    return counted.result()
