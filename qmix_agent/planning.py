"""Planning: imagine many episodes, and play the one that the mixer values most.

In some games it is cheap to know where actions lead and expensive to know what they pay. Such an environment has a
method `imagine()`: it returns an environment of the same game that costs nothing to play and pays unknown rewards. Its
attribute `known` says whether the last episode's outcome has been paid before, and its `reset` takes the
`episode_options` of the real environment, so that both play the same episode.

Shapes: K imagined episodes, T steps, N agents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from .learner import Learner, team_values
from .networks import AgentNetwork
from .replay_buffer import make_batch
from .rollout import EpisodeSettings, Policy, play_episodes
from .team_env import TeamEnv
from .types import Episode

EPSILONS = (0.02, 0.6)
"""Lowest and highest epsilon of the imagined episodes; those between are spaced geometrically."""
RANDOM_CHOICE = 0.1
"""Probability of playing a random imagined episode instead of the best, so that errors of the values show."""


@dataclass(frozen=True)
class PlannedEpisode:
    """The imagined episode that will be played."""

    actions: np.ndarray  # int64 [T, N]
    epsilon: float
    """Probability of a random action with which it was imagined."""


def epsilons_of(count: int) -> list[float]:
    """Return the epsilon of each of `count` imagined episodes."""
    return list(np.geomspace(*EPSILONS, count).tolist())


class Planner:
    """Imagines episodes of one environment.

    Args:
        env: The environment in which planned episodes are played.
        count: Number of episodes to imagine before each one, K.

    Raises:
        ValueError: The environment has no method `imagine`.
    """

    def __init__(self, env: TeamEnv, count: int) -> None:
        self._env = env
        self._games = [env.imagine() for _ in range(count)]
        self._epsilons = epsilons_of(count)

    def plan(self, learner: Learner, policy: Policy, seed: int, rng: np.random.Generator) -> PlannedEpisode:
        """Return the episode to play next. The real environment has just been reset with `seed`.

        It is the imagined episode whose last joint action has the highest Q_tot, or now and then a random one. Episodes
        with a known outcome are passed over as long as there are others.
        """
        options = self._env.episode_options
        settings = [
            EpisodeSettings(seed, epsilon, child, options)
            for epsilon, child in zip(self._epsilons, rng.spawn(len(self._games)), strict=True)
        ]
        episodes = [played.episode for played in play_episodes(self._games, policy, settings)]
        unknown = [index for index, game in enumerate(self._games) if not game.known] or range(len(self._games))
        if rng.random() < RANDOM_CHOICE:
            chosen = int(rng.choice(unknown))
        else:
            values = final_values(learner.network, learner.mixer, [episodes[index] for index in unknown])
            chosen = unknown[int(values.argmax())]
        return PlannedEpisode(episodes[chosen].actions, self._epsilons[chosen])


class ScriptedPolicy:
    """Plays given actions.

    Args:
        scripts: Actions of each game, int64 [T, N].
    """

    def __init__(self, scripts: Sequence[np.ndarray]) -> None:
        self._scripts = scripts
        self.reset(len(scripts))

    def reset(self, games: int) -> None:
        """Start new episodes."""
        self._step = -1

    def act(self, *_: Any) -> np.ndarray:
        """Return the next actions, int64 [K, N]; a game whose script is over repeats its last ones."""
        self._step += 1
        return np.stack([script[min(self._step, len(script) - 1)] for script in self._scripts])


@torch.no_grad()
def final_values(network: AgentNetwork, mixer: nn.Module, episodes: Sequence[Episode]) -> np.ndarray:
    """Return the value of each episode's last joint action, [K]; the mean over the agents for iql."""
    batch = make_batch(episodes, next(network.parameters()).device)
    values = team_values(network, mixer, batch).q_tot.mean(-1)  # [K, T]
    last = batch.filled.sum(1).long() - 1  # [K]
    return values.gather(1, last.unsqueeze(1)).squeeze(1).double().cpu().numpy()
