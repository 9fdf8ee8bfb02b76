"""Epsilon-greedy exploration: the epsilon schedule and the choice of legal actions.

Shapes: K games, N agents, A actions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .config import QMIXConfig


def epsilon_at(config: QMIXConfig, episode: int) -> float:
    """Return epsilon in this episode: linear from `epsilon_start` to `epsilon_end`, then constant."""
    if episode >= config.epsilon_episodes:
        return config.epsilon_end
    fraction = episode / config.epsilon_episodes
    return config.epsilon_start + (config.epsilon_end - config.epsilon_start) * fraction


def epsilon_greedy_actions(
    q: np.ndarray, action_masks: np.ndarray, epsilons: Sequence[float], rngs: Sequence[np.random.Generator]
) -> np.ndarray:
    """Choose the best legal action of each agent, or with probability epsilon a uniformly random legal one.

    Each agent explores independently. Each game draws from its own generator, so that its actions do not depend on the
    other games.

    Args:
        q: Action values, [K, N, A].
        action_masks: Legal actions, bool [K, N, A], with at least one for each agent.
        epsilons: Epsilon of each game.
        rngs: Random generator of each game.

    Returns:
        Actions, int64 [K, N].
    """
    explores, draws = np.empty(q.shape[:2], dtype=bool), np.empty(q.shape)
    for game, (epsilon, rng) in enumerate(zip(epsilons, rngs, strict=True)):
        explores[game] = rng.random(q.shape[1]) < epsilon
        rng.random(out=draws[game])
    random_actions = np.where(action_masks, draws, -1.0).argmax(axis=-1)
    greedy_actions = np.where(action_masks, q, -np.inf).argmax(axis=-1)
    return np.where(explores, random_actions, greedy_actions)
