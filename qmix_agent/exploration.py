"""Who explores, how often, and among which actions."""

from __future__ import annotations

import numpy as np

from .config import QMIXConfig


def epsilon_at(config: QMIXConfig, episode: int) -> float:
    """Linear from `epsilon_start` to `epsilon_end` over `epsilon_episodes`, then constant."""
    if episode >= config.epsilon_episodes:
        return config.epsilon_end
    share = episode / config.epsilon_episodes
    return config.epsilon_start + (config.epsilon_end - config.epsilon_start) * share


def greedy_actions(q: np.ndarray, action_masks: np.ndarray) -> np.ndarray:
    """The best legal action of each agent: q [N, A], masks bool [N, A] -> int64 [N]."""
    return np.where(action_masks, q, -np.inf).argmax(axis=-1)


def random_actions(action_masks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A uniformly random legal action of each agent: masks bool [N, A] -> int64 [N]."""
    return np.where(action_masks, rng.random(action_masks.shape), -1.0).argmax(axis=-1)


def explorers(action_masks: np.ndarray, epsilon: float, rng: np.random.Generator, exploration: str) -> np.ndarray:
    """Which agents act at random in this step: bool [N].

    exploration  "agent": each with probability epsilon. "team": with probability epsilon a uniformly random number of
                 the agents that have a choice, at least one of them; otherwise none
    """
    if exploration == "agent":
        return rng.random(len(action_masks)) < epsilon
    chosen = np.zeros(len(action_masks), dtype=bool)
    free = np.flatnonzero(action_masks.sum(axis=-1) > 1)
    if rng.random() < epsilon and len(free):
        chosen[rng.permutation(free)[: rng.integers(1, len(free) + 1)]] = True
    return chosen


def choose(
    q: np.ndarray, action_masks: np.ndarray, epsilon: float, rng: np.random.Generator, exploration: str
) -> np.ndarray:
    """Epsilon-greedy legal actions: q [N, A], masks bool [N, A] -> int64 [N]."""
    explore = explorers(action_masks, epsilon, rng, exploration)
    return np.where(explore, random_actions(action_masks, rng), greedy_actions(q, action_masks))
