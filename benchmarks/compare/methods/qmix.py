"""QMIX, and VDN and IQL, which use other mixers. Exploration ends after half of `max_plans` episodes.

docs/benchmarks/comparison.md describes how `SETTINGS` were chosen. Agents are not recurrent, because observations
contain everything that matters. There are several updates per episode, because evaluations are expensive. Returns are
standardised, because those of different plans differ little.
"""

from __future__ import annotations

from typing import Any

from prune_env import FilterPruneEnv
from qmix_agent import QMIX, QMIXConfig, TeamPolicy
from qmix_agent.config import Mixer

from .counted import PROPOSALS, Counted
from .result import SearchResult

SETTINGS: dict[str, Any] = {"recurrent": False, "updates_per_episode": 8, "standardise_returns": True}
PLANNING: dict[str, Any] = {"imagined_episodes": 64, "epsilon_end": 1.0}
"""Further settings of a search that plans; it acts by the imagined episodes, so epsilon does not fall."""


def search(env: FilterPruneEnv, max_plans: int, seed: int, mixer: Mixer = "qmix") -> SearchResult:
    """Search with the settings of the comparison."""
    return learn(env, max_plans, seed, mixer=mixer, **SETTINGS)


def config(max_plans: int, **fields: Any) -> QMIXConfig:
    """Return the configuration for a search of `max_plans` plans; `fields` override the fields of QMIXConfig."""
    return QMIXConfig(**({"epsilon_episodes": max(1, max_plans // 2), "eval_every": 0} | fields))


def learn(env: FilterPruneEnv, max_plans: int, seed: int, **fields: Any) -> SearchResult:
    """Search with the configuration for `max_plans` plans; see `config`."""
    return run(env, max_plans, seed, config(max_plans, **fields))[1]


def run(
    env: FilterPruneEnv, max_plans: int, seed: int, settings: QMIXConfig, policy: TeamPolicy | None = None
) -> tuple[QMIX, SearchResult]:
    """Learn until `max_plans` distinct plans are evaluated or PROPOSALS * `max_plans` episodes are played.

    Returns:
        The agent, and what it has evaluated.
    """
    with Counted(env, max_plans) as counted:
        agent = QMIX(counted.env, settings, seed, policy=policy)
        agent.learn(PROPOSALS * max_plans, progress=False)
    return agent, counted.result()
