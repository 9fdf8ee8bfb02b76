"""PettingZoo's versioned entry point: `filter_prune_v0.parallel_env(...)`, and `env(...)` for the AEC API.

Importing this module registers both, where PettingZoo has a registry (1.27 and later):
`pettingzoo.make("parallel", "prune_env/filter_prune_v0", network="resnet20", data="cifar10")`.

The version rises when the same actions would give other observations, rewards or masks.
"""

from __future__ import annotations

from typing import Any

import pettingzoo
from pettingzoo import AECEnv
from pettingzoo.utils import parallel_to_aec, wrappers

from .game.env import FilterPruneEnv
from .game.make import make_env

__all__ = ["FilterPruneEnv", "env", "parallel_env", "raw_env"]


def parallel_env(network: str = "small_cnn", data: str = "digits", **settings: Any) -> FilterPruneEnv:
    """Make the environment; see `prune_env.make_env` for the settings."""
    return make_env(network, data, **settings)


def raw_env(network: str = "small_cnn", data: str = "digits", **settings: Any) -> AECEnv:
    """Make the environment in which agents act in turn; a round is played when its last agent has acted."""
    return parallel_to_aec(parallel_env(network, data, **settings))


def env(network: str = "small_cnn", data: str = "digits", **settings: Any) -> AECEnv:
    """Make `raw_env` with PettingZoo's checks of actions and of the order of calls."""
    return wrappers.OrderEnforcingWrapper(wrappers.AssertOutOfBoundsWrapper(raw_env(network, data, **settings)))


def _register() -> None:
    if not hasattr(pettingzoo, "register"):  # before 1.27
        return
    for env_type, entry_point in (("parallel", "parallel_env"), ("aec", "env")):
        pettingzoo.register(env_type, "prune_env/filter_prune_v0", entry_point=f"{__name__}:{entry_point}")


_register()
