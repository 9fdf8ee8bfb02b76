"""What the plug-in examples share: their command line, and a summary of the plans that they found."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, get_type_hints

import numpy as np
import tyro

from prune_env import FilterPruneEnv
from prune_env.common.command import one_line_errors
from prune_env.common.settings import checked


def run(main: Callable[..., None], description: str | None) -> None:
    """Run the command line of an example, after a check of its arguments.

    Args:
        main: The example.
        description: Text of --help.
    """
    kinds = get_type_hints(main, include_extras=True)

    @wraps(main)
    def checked_main(**arguments: Any) -> None:
        main(**{name: checked(name, value, kinds[name]) for name, value in arguments.items()})

    with one_line_errors():
        tyro.cli(checked_main, description=description)


def print_scores(env: FilterPruneEnv, name: str, seed: int = 0) -> None:
    """Print the best plan of a search, on the images that the search has seen.

    Args:
        env: The environment; its archive holds the plans of the search.
        name: Name of the search.
        seed: Seed of the random search.
    """
    random = FilterPruneEnv(env.problem, env.config, evaluator=env.evaluator)  # an archive of its own
    rng = np.random.default_rng(seed)
    while len(random.archive) < len(env.archive):
        _, infos = random.reset()
        while random.agents:
            legal = {agent: np.flatnonzero(infos[agent]["action_mask"]) for agent in random.agents}
            *_, infos = random.step({agent: int(rng.choice(actions)) for agent, actions in legal.items()})
    rows = [(label, len(one.archive), one.archive.best()[0].plan) for label, one in ((name, env), ("random", random))]
    print(f"\n{'search':<14} {'plans':>5} {'accuracy':>9} {'MACs':>7}   best plan, accuracy before any distillation")
    for label, plans, plan in (*rows, ("uniform", 1, env.budget.uniform())):
        accuracy, macs = env.evaluator.accuracy(plan), env.cost_ratios(plan)[0]
        print(f"{label:<14} {plans:>5} {100 * accuracy:>7.2f} % {100 * macs:>5.1f} %   {plan}")
