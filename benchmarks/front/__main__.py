"""Compare ways to find a good plan for each of several budgets, at equal evaluations in all.

    python -m benchmarks.front --network resnet20 --data cifar10 --weights FILE --seeds 10

Every look at an accuracy counts as an evaluation, and each method has `max_plans` of them for all budgets together. At
the end, each method proposes a plan for every budget in `unseen`, which is evaluated once. One row per method and seed
is appended to rows.jsonl in `out`; runs that already have a row are skipped. Also writes front.md and front.png.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from prune_env import EnvConfig, FilterPruneEnv
from prune_env.common.command import check_writable, one_line_errors, require_packages
from prune_env.common.fingerprints import weights_fingerprint
from prune_env.common.settings import Count, Settings
from prune_env.game.arguments import ProblemArgs
from prune_env.game.budget import Target

from ..compare import rows
from ..compare.methods.rules import RULES
from . import report
from .methods import METHODS


def _game() -> EnvConfig:
    rates = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    return EnvConfig(target_macs=(0.3, 0.4, 0.5, 0.6, 0.7), rates=rates, round_to=1, linear=False)


@dataclass(frozen=True)
class Config(Settings):
    problem: Annotated[ProblemArgs, tyro.conf.OmitArgPrefixes] = field(default_factory=ProblemArgs)
    """The network and its data."""
    env: Annotated[EnvConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=_game)
    """The game and its budgets."""
    unseen: tuple[Target, ...] = (0.35, 0.45, 0.55, 0.65)
    """Budgets that no method sees during its search."""
    max_plans: Count = 300
    """Evaluations of a search, for all budgets together."""
    seeds: Count = 10
    """Runs with different seeds."""
    methods: tuple[str, ...] = tuple(METHODS)
    """Methods that run; the rules without a search run once."""
    out: Path = Path("runs/front")
    """Folder of the results."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := set(self.methods) - set(METHODS):
            raise ValueError(f"methods: {min(unknown)!r} is unknown; choose among {', '.join(METHODS)}")
        if None in self.env.targets or self.env.cost != "macs":
            raise ValueError("target-macs must be set: the methods are compared at equal budgets of MACs")
        if self.max_plans < 2 * len(self.env.targets):
            raise ValueError(f"max-plans must be at least twice the number of budgets, got {self.max_plans}")


def main(config: Config) -> None:
    require_packages(["matplotlib"], "the plot", "train")
    if any(method.startswith("cma") for method in config.methods):
        require_packages(["cma"], "CMA-ES", "benchmarks")
    check_writable("out", config.out, folder=True)
    file = config.out / "rows.jsonl"
    settings = {"problem": rows.problem_of(config.problem, config.env), "unseen": list(config.unseen)}
    found = [row for row in rows.read_file(file) if _of(row) == _of(settings)]
    done = {_run(row) for row in found}
    env = config.problem.make_env(config.env)
    fingerprint = weights_fingerprint(env.problem.model)
    rows.check_weights(found, fingerprint, config.problem.weights, config.out)
    settings["weights_fingerprint"] = fingerprint
    for rule in RULES:
        row = settings | {"method": rule, "seed": 0, "max_plans": 1}
        if _run(row) not in done:
            rows.append(file, row | _ruled(env, config, rule))
    for seed in range(config.seeds):
        for method in config.methods:
            row = settings | {"method": method, "seed": seed, "max_plans": config.max_plans}
            if _run(row) not in done:
                result = _searched(env, config, method, seed)
                rows.append(file, row | result)
                accuracies = ", ".join(f"{100 * accuracy:.1f}" for accuracy in result["accuracies"].values())
                print(f"{method}, seed {seed}: {accuracies} % in {result['seconds']:.0f} s", flush=True)
    report.write(config.out, [row for row in rows.read_file(file) if _of(row) == _of(settings)])


def _of(row: dict[str, Any]) -> str:
    """Return a text that is equal for rows of one comparison."""
    return rows.canonical([rows.with_defaults(row["problem"]), row["unseen"]])


def _run(row: dict[str, Any]) -> tuple[Any, ...]:
    """Return what identifies a run of a comparison."""
    return row["method"], row["seed"], row["max_plans"]


def _searched(env: FilterPruneEnv, config: Config, method: str, seed: int) -> dict[str, Any]:
    """Run a method and return its results."""
    started = time.perf_counter()
    # Nothing but the evaluator's memory is shared with other runs, and what is in it still counts as an evaluation.
    fresh = FilterPruneEnv(env.problem, env.config, evaluator=env.evaluator)
    front = METHODS[method](fresh, config.max_plans, seed)
    seconds = time.perf_counter() - started
    targets = [target for target in env.config.targets if target is not None]
    proposed = {str(target): env.evaluator.accuracy(front.propose(target)) for target in config.unseen}
    return {
        "accuracies": {str(target): _best(env, front.accuracies, target) for target in targets},
        "unseen_accuracies": proposed,
        "evaluations": len(front.accuracies),
        "seconds": seconds,
    }


def _ruled(env: FilterPruneEnv, config: Config, rule: str) -> dict[str, Any]:
    """Return the accuracies of a rule's plans."""
    started = time.perf_counter()
    targets = [target for target in env.config.targets if target is not None]
    seen, unseen = (
        {str(target): env.evaluator.accuracy(RULES[rule](env, target)) for target in these}
        for these in (targets, config.unseen)
    )
    seconds = time.perf_counter() - started
    return {"accuracies": seen, "unseen_accuracies": unseen, "evaluations": len(targets), "seconds": seconds}


def _best(env: FilterPruneEnv, accuracies: dict[tuple[int, ...], float], target: float) -> float:
    """Return the best accuracy among the plans that meet a budget."""
    budget = env.budgets.of(target)
    return max((accuracy for plan, accuracy in accuracies.items() if budget.meets(plan)), default=0.0)


if __name__ == "__main__":
    with one_line_errors("Interrupted. Finished runs are kept; the same command resumes."):
        main(tyro.cli(Config, prog="python -m benchmarks.front", description=__doc__))
