"""DQN (Mnih et al. 2015) layer by layer, by the library stable-baselines3, on the CPU.

DQN needs discrete actions: keep ratios from 0.05 to 1 in steps of 0.05. The settings are those of the library, except
that DQN learns at every step from the 32nd episode on, with learning rate 1e-3 and without discount, copies its target
network every 200 steps instead of every 10,000, and explores during half of the evaluations.
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
"""Number of episodes before the first update."""


class Stepped(gymnasium.ActionWrapper[np.ndarray, int, np.ndarray]):
    """A discrete action space: the index of a keep ratio in `RATIOS`."""

    def __init__(self, env: LayerByLayer) -> None:
        super().__init__(env)
        self.action_space = gymnasium.spaces.Discrete(len(RATIOS))

    def action(self, action: int) -> np.ndarray:
        """Return the keep ratio of an index."""
        return RATIOS[[int(action)]]


def search(env: FilterPruneEnv, max_plans: int, seed: int) -> SearchResult:
    """Learn until `max_plans` distinct plans are evaluated or PROPOSALS * `max_plans` episodes are played.

    Args:
        env: The environment; its evaluations are counted.
        max_plans: Distinct plans that may be evaluated.
        seed: Seed of the search.
    """
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
