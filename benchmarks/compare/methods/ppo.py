"""PPO (Schulman et al. 2017) on the joint single-agent view, by the library stable-baselines3, on the CPU.

The settings are those of the library, except that PPO learns every 16 episodes (2,048 steps would be more than a whole
search), with learning rate 1e-3, and without discount, because only the end of an episode is rewarded.
"""

from __future__ import annotations

from prune_env import FilterPruneEnv
from prune_env.single_agent import Joint

from .counted import PROPOSALS, Counted
from .result import SearchResult
from .seeding import own_generators

EPISODES = 16
"""Number of episodes between updates."""


def search(env: FilterPruneEnv, max_plans: int, seed: int) -> SearchResult:
    """Learn until `max_plans` distinct plans are evaluated or PROPOSALS * `max_plans` episodes are played.

    Args:
        env: The environment; its evaluations are counted.
        max_plans: Distinct plans that may be evaluated.
        seed: Seed of the search.
    """
    from stable_baselines3 import PPO

    rounds = env.config.rounds
    with Counted(env, max_plans) as counted, own_generators(seed):
        settings = {"n_steps": EPISODES * rounds, "batch_size": EPISODES * rounds // 4, "learning_rate": 1e-3}
        agent = PPO("MlpPolicy", Joint(counted.env), gamma=1.0, seed=seed, device="cpu", **settings)
        agent.learn(PROPOSALS * max_plans * rounds)
    return counted.result()
