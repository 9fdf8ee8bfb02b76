"""Search with QMIX and MAPPO of BenchMARL, with the environment as a custom task.

BenchMARL requires an older TorchRL: install it in a separate virtual environment, from a clone.

    python3 -m venv .venv-benchmarl && .venv-benchmarl/bin/pip install "benchmarl>=1.5" -e ".[train]"
    .venv-benchmarl/bin/python examples/plug_in_benchmarl.py --algorithm mappo
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any, Literal

from benchmarl.algorithms import MappoConfig, QmixConfig
from benchmarl.environments.pettingzoo.common import PettingZooClass
from benchmarl.experiment import Experiment, ExperimentConfig
from benchmarl.models import MlpConfig
from scores import print_scores, run
from torchrl.envs import PettingZooWrapper

from prune_env import FilterPruneEnv, make_env
from prune_env.common.settings import Count, Seed


class FilterPruneTask(PettingZooClass):
    """A PettingZoo task of BenchMARL on one environment, from which it derives masks, state and observations."""

    def get_env_fun(self, *_: Any, **__: Any) -> Callable[[], PettingZooWrapper]:
        game: FilterPruneEnv = self.config["game"]
        return lambda: PettingZooWrapper(game, return_state=True)

    def supports_discrete_actions(self) -> bool:
        return True

    def max_steps(self, env: PettingZooWrapper) -> int:
        return self.config["game"].config.rounds


def main(algorithm: Literal["qmix", "mappo"] = "qmix", episodes: Count = 300, seed: Seed = 0) -> None:
    """Search, and compare the best plan with those of random search and uniform pruning.

    Args:
        algorithm: Algorithm of BenchMARL.
        episodes: Number of training episodes.
        seed: Seed of the algorithm.
    """
    game = make_env("small_cnn", "digits", target_macs=0.3)
    batch = 10 * game.config.rounds  # environment steps, 10 episodes
    config = ExperimentConfig.get_from_yaml()
    config.max_n_frames = episodes * game.config.rounds
    config.gamma, config.lr = 1.0, 1e-3
    # One environment without evaluations in between, because its archive collects the plans.
    config.on_policy_n_envs_per_worker = config.off_policy_n_envs_per_worker = 1
    config.evaluation = config.create_json = False
    config.loggers = []
    config.on_policy_collected_frames_per_batch = config.off_policy_collected_frames_per_batch = batch
    config.on_policy_minibatch_size, config.on_policy_n_minibatch_iters = batch, 10
    config.off_policy_train_batch_size, config.off_policy_n_optimizer_steps = 64, 40
    config.polyak_tau = 0.05
    config.exploration_anneal_frames = config.max_n_frames // 2
    with tempfile.TemporaryDirectory() as config.save_folder:
        Experiment(
            task=FilterPruneTask("FILTER_PRUNE", {"game": game}),
            algorithm_config={"qmix": QmixConfig, "mappo": MappoConfig}[algorithm].get_from_yaml(),
            model_config=MlpConfig.get_from_yaml(),
            critic_model_config=MlpConfig.get_from_yaml(),
            seed=seed,
            config=config,
        ).run()
    print_scores(game, f"BenchMARL {algorithm}", seed)


if __name__ == "__main__":
    run(main, __doc__)
