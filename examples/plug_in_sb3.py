"""Stable-Baselines3's PPO, one policy shared by all agents, through SuperSuit (no wheels for Python 3.13).

    python examples/plug_in_sb3.py

PPO of Stable-Baselines3 knows no masks: an illegal action is taken as the nearest legal rate below, and infos say so.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tyro
from scores import print_scores
from stable_baselines3 import PPO
from supersuit import pettingzoo_env_to_vec_env_v1
from supersuit.vector.sb3_vector_wrapper import SB3VecEnvWrapper

from prune_env import make_env


class SharedPolicyEnv(SB3VecEnvWrapper):
    """Every agent is a copy of one environment to Stable-Baselines3.

    What SuperSuit 3.11's wrapper lacks: `seed`, which PPO(seed=...) calls and which forwards to a method that is not
    there; and truncation, without which an episode cut short by `max_cycles` is not bootstrapped. `concat_vec_envs_v1`
    is left out, since it plays on copies, whose archives nobody sees.
    """

    def seed(self, seed: int | None = None) -> list[int | None]:
        self.venv.reset(seed=seed)
        return [seed] * self.num_envs

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        observations, rewards, terminated, truncated, infos = self.venv.step_wait()
        for info, ended, cut in zip(infos, terminated, truncated, strict=True):
            info["TimeLimit.truncated"] = bool(cut and not ended)
        return observations, rewards, (terminated | truncated).astype(bool), infos


def main(episodes: int = 300, seed: int = 0) -> None:
    """Plays, and compares the best plan.

    Args:
        episodes: played in training
        seed: of the algorithm
    """
    game = make_env("small_cnn", "digits", target_macs=0.3)
    env = SharedPolicyEnv(pettingzoo_env_to_vec_env_v1(game))
    rounds = game.config.rounds
    # Updates after every 10 episodes; all agents get the team's reward.
    ppo = PPO("MlpPolicy", env, n_steps=10 * rounds, batch_size=10 * rounds, gamma=1.0, ent_coef=0.01, seed=seed)
    ppo.learn(episodes * rounds * env.num_envs)
    print_scores(game, "SB3 PPO", seed)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
