"""QMIX (Rashid et al. 2018, arXiv:1803.11485) for any cooperative PettingZoo ParallelEnv.

    agent = QMIX(env, QMIXConfig(epsilon_episodes=200), seed=0).learn(episodes=400)
    actions = agent.act(observations, action_masks, reset=True)

Names are imported at first use, so that `QMIXConfig` can be read, and a command line made, without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .config import QMIXConfig

if TYPE_CHECKING:
    from .agent import QMIX
    from .checkpoint import CheckpointError
    from .subprocess_env import EnvProcessError, SubprocessEnv
    from .types import Batch, EnvSpec, Episode, Evaluation

__all__ = [
    "QMIX",
    "Batch",
    "CheckpointError",
    "EnvProcessError",
    "EnvSpec",
    "Episode",
    "Evaluation",
    "QMIXConfig",
    "SubprocessEnv",
]

_HOMES = {
    "QMIX": "agent",
    "CheckpointError": "checkpoint",
    "EnvProcessError": "subprocess_env",
    "SubprocessEnv": "subprocess_env",
    "Batch": "types",
    "EnvSpec": "types",
    "Episode": "types",
    "Evaluation": "types",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
