"""Ways to find a good plan for each of several budgets with a given number of evaluations in all.

A method returns every plan that it evaluated, and a proposal for any further budget, which it makes without an
evaluation. Letters: G groups, B budgets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from prune_env import FilterPruneEnv
from prune_env.pruning import Plan
from qmix_agent import QMIX, QMIXConfig, TeamPolicy

from ..compare.methods import evolution, qmix, random_search
from ..compare.methods.counted import PROPOSALS, Counted
from ..compare.methods.plans import from_keep_ratios
from ..compare.methods.result import SearchResult
from ..policy.train import CONTINUED, PUBLISHED, settings

RANDOM_PER_BUDGET = 10
"""Random episodes for each budget before planning starts."""


@dataclass(frozen=True)
class Front:
    """What a method has found."""

    accuracies: dict[Plan, float]
    """Accuracy of every evaluated plan."""
    propose: Callable[[float], Plan]
    """Returns a plan for a budget that the method has not seen."""


Method = Callable[[FilterPruneEnv, int, int], Front]
"""method(env, max_plans, seed); the targets are those of the environment."""


def qmix_front(env: FilterPruneEnv, max_plans: int, seed: int, **fields: Any) -> Front:
    """Learn one policy over all budgets. For other budgets, play it greedily."""
    return _one_policy(env, max_plans, seed, qmix.config(max_plans, **qmix.SETTINGS, **fields))


def qmix_planned_front(env: FilterPruneEnv, max_plans: int, seed: int) -> Front:
    """Learn one policy over all budgets, and evaluate the best of many imagined episodes."""
    random_episodes = RANDOM_PER_BUDGET * len(env.config.targets)
    return qmix_front(env, max_plans, seed, **qmix.PLANNING, learning_starts=random_episodes)


def qmix_policy_front(env: FilterPruneEnv, max_plans: int, seed: int) -> Front:
    """Continue learning from the published policy, which was learned on other networks, with planning."""
    config = settings(PROPOSALS * max_plans, **CONTINUED)
    return _one_policy(env, max_plans, seed, config, TeamPolicy.load(PUBLISHED))


def qmix_prior_front(env: FilterPruneEnv, max_plans: int, seed: int) -> Front:
    """Learn one policy over all budgets that starts from the proposed rates, with planning."""
    return _one_policy(env, max_plans, seed, settings(PROPOSALS * max_plans, prior=True, **CONTINUED))


def qmix_each(env: FilterPruneEnv, max_plans: int, seed: int) -> Front:
    """Learn one policy for each budget."""
    return _each(env, max_plans, lambda one, plans: qmix.search(one, plans, seed).entries)


def cma_each(env: FilterPruneEnv, max_plans: int, seed: int) -> Front:
    """Search with CMA-ES for each budget."""
    return _each(env, max_plans, lambda one, plans: evolution.search(one, plans, seed).entries)


def cma_least_change_each(env: FilterPruneEnv, max_plans: int, seed: int) -> Front:
    """Search with CMA-ES for each budget, from the least-change plan."""
    return _each(env, max_plans, lambda one, plans: evolution.from_least_change(one, plans, seed).entries)


def random_each(env: FilterPruneEnv, max_plans: int, seed: int) -> Front:
    """Play randomly at each budget."""
    return _each(env, max_plans, lambda one, plans: random_search.search(one, plans, seed).entries)


def cma_joint(env: FilterPruneEnv, max_plans: int, seed: int) -> Front:
    """Search with CMA-ES for one vector of keep ratios that is projected onto every budget.

    Its fitness is the mean accuracy over the budgets, each relative to the accuracy of the uniform plan.
    """
    games = [env.clone(target=target) for target in env.config.targets]
    best: list[tuple[float, np.ndarray]] = []
    with Counted(env, max_plans) as counted:
        uniform = [counted.accuracy(game.budget.uniform()) for game in games]

        def fitness(keep: np.ndarray) -> float:
            accuracies = [counted.accuracy(from_keep_ratios(game, keep)) for game in games]
            value = float(np.mean([accuracy / base for accuracy, base in zip(accuracies, uniform, strict=True)]))
            best.append((value, keep))
            return value

        start = np.mean([game.budget.uniform() for game in games], 0) / env.problem.full_plan
        evolution.maximise(fitness, start, seed)
    _, keep = max(best, key=lambda pair: pair[0])
    return Front(_accuracies(counted.result()), lambda target: from_keep_ratios(env.clone(target=target), keep))


METHODS: dict[str, Method] = {
    "qmix_planned": qmix_planned_front,
    "qmix_policy": qmix_policy_front,
    "qmix_prior": qmix_prior_front,
    "qmix": qmix_front,
    "qmix_each": qmix_each,
    "cma_each": cma_each,
    "cma_least_change_each": cma_least_change_each,
    "cma_joint": cma_joint,
    "random_each": random_each,
}


def _one_policy(
    env: FilterPruneEnv, max_plans: int, seed: int, config: QMIXConfig, policy: TeamPolicy | None = None
) -> Front:
    """Learn one policy over all budgets, from a given one on or from nothing. For other budgets, play it greedily."""
    agent, result = qmix.run(env, max_plans, seed, config, policy)
    return Front(_accuracies(result), lambda target: _greedy_plan(agent, env, target))


def _each(env: FilterPruneEnv, max_plans: int, search: Callable[[FilterPruneEnv, int], Any]) -> Front:
    """Search for each budget with an equal part of the evaluations.

    For another budget, the best plan of the next larger one (or else of the largest) is projected.
    """
    targets = sorted(env.config.targets)
    best: dict[float, Plan] = {}
    accuracies: dict[Plan, float] = {}
    for target in targets:
        entries = search(env.clone(target=target), max_plans // len(targets))
        accuracies |= {entry.plan: entry.accuracy for entry in entries}
        best[target] = max(entries, key=lambda entry: entry.accuracy).plan

    def propose(target: float) -> Plan:
        nearest = min((one for one in targets if one >= target), default=targets[-1])
        budget = env.budgets.of(target)
        return budget.project(budget.full_plan, best[nearest], last=True)

    return Front(accuracies, propose)


def _accuracies(result: SearchResult) -> dict[Plan, float]:
    return {entry.plan: entry.accuracy for entry in result.entries}


def _greedy_plan(agent: QMIX, env: FilterPruneEnv, target: float) -> Plan:
    """Return the plan that the agent's greedy policy ends with."""
    game = env.clone(target=target).imagine()
    observations, infos = game.reset()
    first = True
    while game.agents:
        masks = {name: info["action_mask"] for name, info in infos.items()}
        actions = agent.act(observations, masks, reset=first)
        observations, *_, infos = game.step(actions)
        first = False
    return game.plan
