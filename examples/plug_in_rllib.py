"""Search with PPO of RLlib with action masks and one policy for all agents, through ParallelPettingZooEnv.

RLlib requires an older Gymnasium: install it in a separate virtual environment, from a clone.

    python3 -m venv .venv-rllib && .venv-rllib/bin/pip install "ray[rllib]>=2.40" -e ".[train]"
    .venv-rllib/bin/python examples/plug_in_rllib.py
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict
from pettingzoo.utils import BaseParallelWrapper
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module import MultiRLModuleSpec, RLModuleSpec
from ray.rllib.env.wrappers.pettingzoo_env import ParallelPettingZooEnv
from ray.rllib.examples.rl_modules.classes.action_masking_rlm import ActionMaskingTorchRLModule
from ray.tune import register_env
from scores import print_scores, run

from prune_env import make_env
from prune_env.common.settings import Count, Seed


class MaskInObservation(BaseParallelWrapper):
    """Add the action mask to the observation, where RLlib's action-masking module expects it."""

    def observation_space(self, agent: str) -> Dict:
        mask = Box(0.0, 1.0, (self.env.action_space(agent).n,), np.float32)
        return Dict({"observations": self.env.observation_space(agent), "action_mask": mask})

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        observations, infos = self.env.reset(seed=seed, options=options)
        return self._masked(observations, infos), infos

    def step(self, actions: dict) -> tuple[dict, dict, dict, dict, dict]:
        observations, *rest, infos = self.env.step(actions)
        return self._masked(observations, infos), *rest, infos

    def _masked(self, observations: dict, infos: dict) -> dict[str, dict[str, Any]]:
        masks = {agent: info["action_mask"].astype(np.float32) for agent, info in infos.items()}
        return {agent: {"observations": seen, "action_mask": masks[agent]} for agent, seen in observations.items()}


def main(episodes: Count = 300, seed: Seed = 0) -> None:
    """Search, and compare the best plan with those of random search and uniform pruning.

    Args:
        episodes: Number of training episodes.
        seed: Seed of the algorithm.
    """
    game = make_env("small_cnn", "digits", target_macs=0.3)
    masked = MaskInObservation(game)
    register_env("filter_prune", lambda _: ParallelPettingZooEnv(masked))
    batch = 10 * game.config.rounds  # environment steps, 10 episodes
    module = RLModuleSpec(
        ActionMaskingTorchRLModule, masked.observation_space("conv_0"), game.action_space("conv_0"), model_config={}
    )
    config = (
        PPOConfig()
        .environment("filter_prune")
        .env_runners(num_env_runners=0)  # in this process, so that one archive collects all plans
        .multi_agent(policies={"shared"}, policy_mapping_fn=lambda agent, *_, **__: "shared")
        .rl_module(rl_module_spec=MultiRLModuleSpec(rl_module_specs={"shared": module}))
        .training(train_batch_size=batch, minibatch_size=batch, num_epochs=10, gamma=1.0, lr=1e-3, entropy_coeff=0.01)
        .debugging(seed=seed)
    )
    ppo = config.build_algo()
    for _ in range(episodes // 10):
        ppo.train()
    (played,) = ppo.env_runner_group.local_env_runner.env.envs
    print_scores(played.unwrapped.par_env.unwrapped, "RLlib PPO", seed)  # Ray plays on a copy of the environment
    ppo.stop()


if __name__ == "__main__":
    run(main, __doc__)
