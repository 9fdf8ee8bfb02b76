"""DQN (Mnih et al. 2015) layer by layer, by the library stable-baselines3, on the CPU.

DQN needs a list of actions: keep ratios from 0.05 to 1 in steps of 0.05. The library's settings, except that it learns
at every step from the 32nd episode on, at 1e-3 and without discount, copies its target network every 200 steps instead
of every 10,000, and has explored when half of the budget is spent.
"""

from __future__ import annotations

import gymnasium
import numpy as np

from prune_env import FilterPruneEnv
from prune_env.single_agent import LayerByLayer

from .counted import PROPOSALS, Counted
from .result import SearchResult
from .seeding import own_generators

RATIOS = np.linspace(0.05, 1.0, 20, dtype=np.float32)
STARTS = 32
"""Episodes before the first update."""


class Stepped(gymnasium.ActionWrapper[np.ndarray, int, np.ndarray]):
    """A keep ratio out of `RATIOS`, by its index."""

    def __init__(self, env: LayerByLayer) -> None:
        super().__init__(env)
        self.action_space = gymnasium.spaces.Discrete(len(RATIOS))

    def action(self, action: int) -> np.ndarray:
        return RATIOS[[int(action)]]


def search(env: FilterPruneEnv, max_plans: int, seed: int) -> SearchResult:
    """Learns until `max_plans` distinct plans are evaluated, or as many episodes are played as there are proposals."""
    from stable_baselines3 import DQN

    steps = len(env.groups)
    with Counted(env, max_plans) as counted, own_generators(seed):
        agent = DQN(
            "MlpPolicy",
            Stepped(LayerByLayer(counted.env)),
            learning_rate=1e-3,
            learning_starts=STARTS * steps,
            train_freq=1,
            gamma=1.0,
            target_update_interval=200,
            exploration_fraction=0.5 / PROPOSALS,
            buffer_size=PROPOSALS * max_plans * steps,
            seed=seed,
            device="cpu",
        )
        agent.learn(PROPOSALS * max_plans * steps)
    return counted.result()
