"""`qmix_agent`, by its public interface. Its own: whatever `Settings` does not name is QMIXConfig's default."""

from __future__ import annotations

from typing import Any

import numpy as np

from qmix_agent import QMIX, Batch, QMIXConfig
from qmix_agent.replay_buffer import pad

from . import Env, Settings

SHARED = (
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
    """Agents without a GRU do not see their last action, as TorchRL's do not."""

    def __init__(
        self, env: Env, settings: Settings, seed: int, recurrent: bool, n_envs: int = 1, **options: Any
    ) -> None:
        """n_envs: copies of the game that are played side by side. options: further fields of QMIXConfig."""
        shared = {name: getattr(settings, name) for name in SHARED}
        config = QMIXConfig(**shared, recurrent=recurrent, last_action=recurrent, eval_every=0, **options)
        self.agent, self._n_envs = QMIX(env, config, seed), n_envs
        self._rng = np.random.default_rng(seed)

    def collect(self, episodes: int) -> float:
        """Also learns, from `learning_starts` episodes on."""
        returns: list[float] = []
        self.agent.learn(
            self.agent.episode + episodes,
            progress=False,
            callback=lambda _, row: returns.append(row["return"]),
            n_envs=self._n_envs,
        )
        return float(np.mean(returns))

    def draw(self) -> Batch:
        config = self.agent.config
        return pad(self.agent.buffer.sample(config.batch_size, self._rng), self.agent.learner.device)

    def step(self, batch: Batch) -> None:
        self.agent.learner.update(batch)

    def evaluate(self, env: Env, episodes: int) -> float:
        return self.agent.evaluate(env, episodes).mean
