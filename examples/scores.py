"""How the plug-in examples end: what was found, beside random search for as many plans and the uniform plan."""

from __future__ import annotations

import numpy as np

from prune_env import FilterPruneEnv
from prune_env.game.archive import Archive


def print_scores(env: FilterPruneEnv, name: str, seed: int = 0) -> None:
    """Compares `env.archive`, which a search has filled, on the images that the search saw."""
    found, env.archive = env.archive, Archive()
    rng = np.random.default_rng(seed)
    while len(env.archive) < len(found):
        _, infos = env.reset()
        while env.agents:
            legal = {agent: np.flatnonzero(infos[agent]["action_mask"]) for agent in env.agents}
            *_, infos = env.step({agent: int(rng.choice(actions)) for agent, actions in legal.items()})
    drawn, env.archive = env.archive, found
    uniform = env.budget.uniform()
    rows = [(label, len(archive), archive.best()[0].plan) for label, archive in ((name, found), ("random", drawn))]
    print(f"\n{'search':<14} {'plans':>5} {'accuracy':>9} {'MACs':>7}   best plan, accuracy before any fine-tuning")
    for label, plans, plan in (*rows, ("uniform", 1, uniform)):
        accuracy, macs = env.evaluator.accuracy(plan), env.cost_ratios(plan)[0]
        print(f"{label:<14} {plans:>5} {100 * accuracy:>7.2f} % {100 * macs:>5.1f} %   {plan}")
