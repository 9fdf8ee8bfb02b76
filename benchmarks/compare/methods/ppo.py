"""PPO (Schulman et al. 2017) on the joint single-agent view, by the library stable-baselines3, on the CPU.

The library's settings, except that it learns every 16 episodes (2,048 steps would be more than a whole budget), at
1e-3, and without discount: only the end of an episode pays.
"""

from __future__ import annotations

from prune_env import FilterPruneEnv
from prune_env.single_agent import Joint

from .counted import PROPOSALS, Counted
from .result import SearchResult
from .seeding import own_generators

EPISODES = 16


def search(env: FilterPruneEnv, max_plans: int, seed: int) -> SearchResult:
    """Learns until `max_plans` distinct plans are evaluated, or as many episodes are played as there are proposals."""
    from stable_baselines3 import PPO

    rounds = env.config.rounds
    with Counted(env, max_plans) as counted, own_generators(seed):
        settings = {"n_steps": EPISODES * rounds, "batch_size": EPISODES * rounds // 4, "learning_rate": 1e-3}
        agent = PPO("MlpPolicy", Joint(counted.env), gamma=1.0, seed=seed, device="cpu", **settings)
        agent.learn(PROPOSALS * max_plans * rounds)
    return counted.result()
