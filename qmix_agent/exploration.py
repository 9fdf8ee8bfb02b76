"""Who explores, how often, and among which actions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .config import QMIXConfig


def epsilon_at(config: QMIXConfig, episode: int) -> float:
    """Linear from `epsilon_start` to `epsilon_end` over `epsilon_episodes`, then constant. 0 for noisy agents."""
    if config.exploration == "noisy":
        return 0.0
    if episode >= config.epsilon_episodes:
        return config.epsilon_end
    share = episode / config.epsilon_episodes
    return config.epsilon_start + (config.epsilon_end - config.epsilon_start) * share


def greedy_actions(q: np.ndarray, action_masks: np.ndarray) -> np.ndarray:
    """The best legal action of each agent: q [..., N, A], masks bool [..., N, A] -> int64 [..., N]."""
    return np.where(action_masks, q, -np.inf).argmax(axis=-1)


def random_actions(action_masks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A uniformly random legal action of each agent: masks bool [N, A] -> int64 [N]."""
    return _random_actions(action_masks, rng.random(action_masks.shape))


def explorers(action_masks: np.ndarray, epsilon: float, rng: np.random.Generator, exploration: str) -> np.ndarray:
    """Which agents act at random in this step: bool [N].

    exploration  "team": with probability epsilon a uniformly random number of the agents that have a choice, at least
                 one of them; otherwise none. "agent" and "noisy": each with probability epsilon
    """
    if exploration != "team":
        return rng.random(len(action_masks)) < epsilon
    chosen = np.zeros(len(action_masks), dtype=bool)
    free = np.flatnonzero(action_masks.sum(axis=-1) > 1)
    if rng.random() < epsilon and len(free):
        chosen[rng.permutation(free)[: rng.integers(1, len(free) + 1)]] = True
    return chosen


def choose(
    q: np.ndarray,
    action_masks: np.ndarray,
    epsilons: Sequence[float],
    rngs: Sequence[np.random.Generator],
    exploration: str,
) -> np.ndarray:
    """Epsilon-greedy legal actions in K games: q [K, N, A], masks bool [K, N, A] -> int64 [K, N].

    Each game draws from its own generator, so that what it draws does not depend on the games beside it.
    """
    explore, draws = np.empty(q.shape[:2], dtype=bool), np.empty(q.shape)
    for game, (epsilon, rng) in enumerate(zip(epsilons, rngs, strict=True)):
        explore[game] = explorers(action_masks[game], epsilon, rng, exploration)
        rng.random(out=draws[game])
    return np.where(explore, _random_actions(action_masks, draws), greedy_actions(q, action_masks))


def _random_actions(action_masks: np.ndarray, draws: np.ndarray) -> np.ndarray:
    return np.where(action_masks, draws, -1.0).argmax(axis=-1)
