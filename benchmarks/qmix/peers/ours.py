"""`qmix_agent`. Its own choices: the defaults of QMIXConfig for everything that `Settings` does not fix."""

from __future__ import annotations

from typing import Any

import numpy as np

from qmix_agent import QMIX, Batch, QMIXConfig
from qmix_agent.replay_buffer import make_batch

from . import Env, Settings

SHARED_FIELDS = (
    "hidden_size",
    "mixing_embed",
    "gamma",
    "batch_size",
    "buffer_size",
    "epsilon_start",
    "epsilon_end",
    "epsilon_episodes",
    "updates_per_episode",
)


class Ours:
    """Wraps `qmix_agent.QMIX`. Agents without a GRU do not see their last action, as in TorchRL.

    Args:
        env: The game to train on.
        settings: Settings that all implementations share.
        seed: Seed of all randomness.
        recurrent: Whether agents have a GRU.
        n_envs: Copies of the game that are played in parallel.
        **options: Further fields of QMIXConfig.
    """

    def __init__(
        self, env: Env, settings: Settings, seed: int, recurrent: bool, n_envs: int = 1, **options: Any
    ) -> None:
        shared = {name: getattr(settings, name) for name in SHARED_FIELDS}
        config = QMIXConfig(**shared, recurrent=recurrent, last_action=recurrent, eval_every=0, **options)
        self.agent, self._n_envs = QMIX(env, config, seed), n_envs
        self._rng = np.random.default_rng(seed)

    def collect(self, episodes: int) -> float:
        """Play, and from `learning_starts` episodes on also learn. Return the mean return."""
        returns: list[float] = []
        self.agent.learn(
            self.agent.episode + episodes,
            n_envs=self._n_envs,
            callback=lambda _, row: returns.append(row["return"]),
            progress=False,
        )
        return float(np.mean(returns))

    def draw(self) -> Batch:
        """Draw a batch from the replay buffer."""
        trainer = self.agent.trainer
        return make_batch(trainer.buffer.sample(trainer.config.batch_size, self._rng), trainer.learner.device)

    def step(self, batch: Batch) -> None:
        """Take one update."""
        self.agent.learner.update(batch)

    def evaluate(self, env: Env, episodes: int) -> float:
        """Return the mean return of greedy episodes."""
        return self.agent.evaluate(env, episodes).mean
