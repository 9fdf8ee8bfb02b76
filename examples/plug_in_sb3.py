"""Search with PPO of Stable-Baselines3 and one policy for all agents, through SuperSuit.

    python examples/plug_in_sb3.py

PPO of Stable-Baselines3 has no action masks. The environment replaces an illegal action by the nearest legal rate below
and reports it in the infos. SuperSuit has no wheels for Python 3.13.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scores import print_scores, run
from stable_baselines3 import PPO
from supersuit import pettingzoo_env_to_vec_env_v1
from supersuit.vector.sb3_vector_wrapper import SB3VecEnvWrapper

from prune_env import make_env
from prune_env.common.settings import Count, Seed


class SharedPolicyEnv(SB3VecEnvWrapper):
    """Present every agent to Stable-Baselines3 as a copy of one environment.

    The wrapper of SuperSuit 3.11 lacks a working `seed`, which PPO(seed=...) calls, and truncation, which PPO needs to
    bootstrap an episode that `max_cycles` ends. `concat_vec_envs_v1` is not used, because it plays on copies of the
    environment, whose archives cannot be read.
    """

    def seed(self, seed: int | None = None) -> list[int | None]:
        self.venv.reset(seed=seed)
        return [seed] * self.num_envs

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        observations, rewards, terminated, truncated, infos = self.venv.step_wait()
        for info, ended, cut in zip(infos, terminated, truncated, strict=True):
            info["TimeLimit.truncated"] = bool(cut and not ended)
        return observations, rewards, (terminated | truncated).astype(bool), infos


def main(episodes: Count = 300, seed: Seed = 0) -> None:
    """Search, and compare the best plan with those of random search and uniform pruning.

    Args:
        episodes: Number of training episodes.
        seed: Seed of the algorithm.
    """
    game = make_env("small_cnn", "digits", target_macs=0.3)
    env = SharedPolicyEnv(pettingzoo_env_to_vec_env_v1(game))
    rounds = game.config.rounds
    # Update after every 10 episodes. All agents get the reward of the team.
    ppo = PPO("MlpPolicy", env, n_steps=10 * rounds, batch_size=10 * rounds, gamma=1.0, ent_coef=0.01, seed=seed)
    ppo.learn(episodes * rounds * env.num_envs)
    print_scores(game, "SB3 PPO", seed)


if __name__ == "__main__":
    run(main, __doc__)
