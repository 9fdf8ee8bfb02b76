"""Playing of episodes in one environment or in several parallel ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from .team_env import TeamEnv, shared_info_scalars
from .types import Episode, JointObservation, StepResult


@dataclass(frozen=True)
class EpisodeSettings:
    """Everything that an episode depends on besides the weights and the environment."""

    seed: int
    """Seed for the environment's reset."""
    epsilon: float
    """Probability of a random action."""
    rng: np.random.Generator
    """Random generator of exploration."""
    options: dict[str, Any] | None = None
    """Options for the environment's reset."""


@dataclass(frozen=True)
class PlayedEpisode:
    """An episode, and what is logged about it."""

    episode: Episode
    epsilon: float
    """Probability of a random action with which it was played."""
    info_scalars: dict[str, float]
    """Numbers on which the last infos of all agents agree."""


class Policy(Protocol):
    """Acts for all agents in K parallel games."""

    def reset(self, games: int) -> None:
        """Start new episodes in this number of games."""

    def act(
        self,
        observations: np.ndarray,
        action_masks: np.ndarray,
        epsilons: Sequence[float],
        rngs: Sequence[np.random.Generator],
    ) -> np.ndarray:
        """Choose legal actions, int64 [K, N]; see `EpsilonGreedyPolicy`."""


def play_episodes(
    envs: Sequence[TeamEnv],
    policy: Policy,
    settings: Sequence[EpisodeSettings],
    first: Sequence[JointObservation] | None = None,
) -> list[PlayedEpisode]:
    """Play one episode in each environment, all environments in step.

    All environments receive their actions before the result of the first is awaited. A game that is over keeps its row
    in the policy's batch, so that the rows of the other games stay in place, but it receives no further actions.

    Args:
        envs: One or more environments of equal specification.
        policy: The policy that acts; it is reset first.
        settings: Seed, epsilon and random generator of each environment's episode.
        first: First observations, if the environments have been reset already.

    Returns:
        One played episode per environment, in the same order.
    """
    policy.reset(len(envs))
    if first is None:
        first = [env.reset(one.seed, one.options) for env, one in zip(envs, settings, strict=True)]
    recorders = [_EpisodeRecorder(one) for one in first]
    epsilons, rngs = [one.epsilon for one in settings], [one.rng for one in settings]
    playing = list(zip(envs, recorders, strict=True))
    while playing:
        observations = np.stack([recorder.last.observations for recorder in recorders])
        masks = np.stack([recorder.last.action_masks for recorder in recorders])
        actions = policy.act(observations, masks, epsilons, rngs)
        for recorder, row in zip(recorders, actions, strict=True):
            recorder.next_actions = row
        for env, recorder in playing:
            env.step_async(recorder.next_actions)
        for env, recorder in playing:
            recorder.add(env.step_wait())
        playing = [(env, recorder) for env, recorder in playing if not recorder.done]
    return [
        PlayedEpisode(recorder.episode(), one.epsilon, shared_info_scalars(env.infos))
        for env, recorder, one in zip(envs, recorders, settings, strict=True)
    ]


class _EpisodeRecorder:
    """Collects the steps of one episode."""

    def __init__(self, first: JointObservation) -> None:
        self.done = False
        self.next_actions = np.empty(0, dtype=np.int64)
        self._observations = [first]
        self._actions: list[np.ndarray] = []
        self._rewards: list[float] = []
        self._terminated: list[bool] = []

    @property
    def last(self) -> JointObservation:
        return self._observations[-1]

    def add(self, result: StepResult) -> None:
        """Add the result of `next_actions`."""
        self._actions.append(self.next_actions)
        self._observations.append(result.observation)
        self._rewards.append(result.reward)
        self._terminated.append(result.terminated)
        self.done = result.done

    def episode(self) -> Episode:
        return Episode(
            observations=np.stack([one.observations for one in self._observations]),
            states=np.stack([one.state for one in self._observations]),
            action_masks=np.stack([one.action_masks for one in self._observations]),
            present=np.stack([one.present for one in self._observations]),
            actions=np.stack(self._actions),
            rewards=np.array(self._rewards, dtype=np.float32),
            terminated=np.array(self._terminated, dtype=bool),
        )
