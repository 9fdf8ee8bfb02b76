"""Evaluation of the greedy policy."""

from __future__ import annotations

import math

import numpy as np

from .policy import EpsilonGreedyPolicy
from .rollout import EpisodeSettings, play_episodes
from .seeding import Stream, make_generator, make_seed
from .team_env import TeamEnv
from .types import Evaluation


def evaluate(env: TeamEnv, policy: EpsilonGreedyPolicy, seed: int, episodes: int) -> Evaluation:
    """Play greedy episodes, on the same environment seeds in every call.

    An environment with several kinds of episodes lists their options in `all_episode_options`. They are played in turn,
    so that every call plays the same ones.

    Args:
        env: The environment; its lasting state may change.
        policy: The policy that acts.
        seed: Seed of the agent. The environment seeds derived from it differ from those of training.
        episodes: Number of episodes.

    Returns:
        Returns, lengths and action counts of the episodes.
    """
    spec, rng = env.spec, make_generator(seed, Stream.ACTING)
    kinds = env.all_episode_options
    played, counts = [], np.zeros((spec.n_agents, spec.max_actions), dtype=np.int64)
    for index in range(episodes):
        options = kinds[index % len(kinds)]
        settings = EpisodeSettings(make_seed(seed, Stream.EVALUATION, index), epsilon=0.0, rng=rng, options=options)
        played += [one.episode for one in play_episodes([env], policy, [settings])]
        counts += env.action_counts
    returns = [episode.total_reward for episode in played]
    rows = zip(spec.agents, spec.n_actions, counts.tolist(), strict=True)
    return Evaluation(
        mean=float(np.mean(returns)),
        standard_error=float(np.std(returns, ddof=1)) / math.sqrt(episodes) if episodes > 1 else math.nan,
        returns=tuple(returns),
        lengths=tuple(len(episode) for episode in played),
        action_counts={agent: tuple(row[:n_actions]) for agent, n_actions, row in rows},
    )
