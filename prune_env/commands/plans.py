"""The plans that a search has found: printed, and written to a file."""

from __future__ import annotations

import json
from pathlib import Path

from ..common.files import replacing
from ..game.archive import Entry
from ..game.env import FilterPruneEnv

PLANS = "plans.json"


def best_plans(env: FilterPruneEnv, count: int) -> list[tuple[float | None, list[Entry]]]:
    """Return every target of the game with its most accurate plans, the best first."""
    return [(target, env.archive.best(count, target=target)) for target in env.config.targets]


def save_plans(directory: Path, env: FilterPruneEnv) -> None:
    """Write all plans to plans.json: for every target the best first, with the filters of every layer."""
    content = [
        {
            env.target_name: target,
            "accuracy": entry.accuracy,
            "macs_ratio": entry.macs_ratio,
            "params_ratio": entry.params_ratio,
            f"{env.config.cost}_ratio": env.archive.ratio(entry),
            "plan": list(entry.plan),
            "layers": {
                layer: kept for group, kept in zip(env.groups, entry.plan, strict=True) for layer in group.layers
            },
        }
        for target, entries in best_plans(env, len(env.archive))
        for entry in entries
    ]
    with replacing(directory / PLANS) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def print_plans(env: FilterPruneEnv, count: int) -> None:
    """Print the best plans of every target, and the uniform plan for comparison."""
    print("\nBest plans: accuracy on the reward images before distillation, MACs, parameters, filters of every group")
    print(f"  {100 * env.evaluator.original_accuracy:6.2f} %  100.0 %  100.0 %  {env.problem.full_plan} original")
    for target, entries in best_plans(env, count):
        for entry in entries:
            costs = f"{100 * entry.macs_ratio:5.1f} %  {100 * entry.params_ratio:5.1f} %"
            print(f"  {100 * entry.accuracy:6.2f} %  {costs}  {entry.plan}")
        uniform = env.budget.uniform(target)
        macs, params = env.cost_ratios(uniform)
        known = 100 * env.evaluator.accuracy(uniform)
        print(f"  {known:6.2f} %  {100 * macs:5.1f} %  {100 * params:5.1f} %  {uniform} uniform")
