"""QMIX (Rashid et al. 2018, arXiv:1803.11485) for any cooperative PettingZoo ParallelEnv.

    agent = QMIX(env, QMIXConfig(epsilon_episodes=200), seed=0).learn(total_episodes=400)
    actions = agent.act(observations, action_masks, reset=True)

Public names are imported on first use, so that reading `QMIXConfig` does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .config import QMIXConfig

if TYPE_CHECKING:
    from .agent import QMIX
    from .checkpoint import CheckpointError
    from .subprocess_env import EnvProcessError, SubprocessEnv
    from .team_policy import Interface, TeamPolicy
    from .types import Batch, EnvSpec, Episode, Evaluation

__all__ = [
    "QMIX",
    "Batch",
    "CheckpointError",
    "EnvProcessError",
    "EnvSpec",
    "Episode",
    "Evaluation",
    "Interface",
    "QMIXConfig",
    "SubprocessEnv",
    "TeamPolicy",
]

_MODULE_OF = {
    "QMIX": "agent",
    "CheckpointError": "checkpoint",
    "EnvProcessError": "subprocess_env",
    "SubprocessEnv": "subprocess_env",
    "Interface": "team_policy",
    "TeamPolicy": "team_policy",
    "Batch": "types",
    "EnvSpec": "types",
    "Episode": "types",
    "Evaluation": "types",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
