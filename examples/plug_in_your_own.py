"""Search with your own algorithm without a framework: the cross-entropy method (Rubinstein 1999) on agents' rates.

python examples/plug_in_your_own.py
"""

from __future__ import annotations

import numpy as np
from scores import print_scores, run

from prune_env import make_env
from prune_env.common.settings import Count, Seed


def main(episodes: Count = 300, seed: Seed = 0) -> None:
    """Search, and compare the best plan with those of random search and uniform pruning.

    Args:
        episodes: Number of training episodes.
        seed: Seed of the algorithm.
    """
    env = make_env("small_cnn", "digits", target_macs=0.3)
    rng = np.random.default_rng(seed)
    rounds, agents, rates = env.config.rounds, env.possible_agents, len(env.config.rates)
    chances = np.full((rounds, len(agents), rates), 1 / rates)
    played: list[tuple[float, np.ndarray]] = []  # return, actions [rounds, agents]
    for episode in range(1, episodes + 1):
        actions, total = np.zeros((rounds, len(agents)), int), 0.0
        _, infos = env.reset()
        for number in range(rounds):
            for index, agent in enumerate(agents):
                legal = chances[number, index] * infos[agent]["action_mask"]
                actions[number, index] = rng.choice(rates, p=legal / legal.sum())
            _, rewards, _, _, infos = env.step(dict(zip(agents, actions[number], strict=True)))
            total += rewards[agents[0]]  # all agents get the reward of the team
        played.append((total, actions))
        if episode % 30 == 0:  # move halfway to the frequency of each rate in the best tenth
            best = [actions for _, actions in sorted(played, key=lambda one: -one[0])[: max(3, episode // 10)]]
            chances = 0.5 * chances + 0.5 * np.mean(np.eye(rates)[best], 0)
    print_scores(env, "cross-entropy", seed)


if __name__ == "__main__":
    run(main, __doc__)
