"""Judge a policy on networks that it never saw, next to rules and searches.

    python -m benchmarks.policy.judge
    python -m benchmarks.policy.judge --policy FILE --network resnet56 --data cifar10 --weights WEIGHTS

Every look at an accuracy counts as an evaluation. Without a network by name, the networks of `games.JUDGING` are
used; they are trained first if they are not in `networks`. One row per network, budget, method and seed is appended to
rows.jsonl in `out`; finished rows are skipped. Prints accuracies on the reward images, means over budgets and seeds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from prune_env import EnvConfig, FilterPruneEnv
from prune_env.common.command import check_writable, one_line_errors, require_packages
from prune_env.common.fingerprints import weights_fingerprint
from prune_env.common.settings import Count, Settings
from prune_env.game.arguments import ProblemArgs
from prune_env.game.budget import Target
from qmix_agent import QMIX, QMIXConfig, TeamPolicy

from ..compare import rows
from ..compare.methods import evolution, qmix, random_search
from ..compare.methods.result import SearchResult
from ..compare.methods.rules import RULES, insides
from . import copied
from .games import JUDGING, RATES, RECIPES, make_games
from .train import CONTINUED, PUBLISHED, settings

IMAGINED = 64
"""Imagined episodes, of which the one with the highest Q_tot is evaluated."""
FEW, MORE = 30, 100
"""Evaluations of the searches."""
NEVER = 10_000
"""More episodes than any search here plays: after so many, learning would start or exploration would change."""
AROUND: dict[str, Any] = {"epsilon_start": 0.1, "epsilon_end": 0.1, "learning_starts": NEVER}
"""Settings of an agent that explores and does not learn."""


IDENTITY = ("network", "weights_fingerprint", "target_macs", "method", "seed", "policy")
"""Entries that identify a row."""


@dataclass(frozen=True)
class Config(Settings):
    policy: Path = PUBLISHED
    """The policy to judge; by default the published one."""
    network: str | None = None
    """Registered network to judge it on, instead of those of `games.JUDGING`."""
    data: str = "cifar10"
    """Data of the network, or the CIFAR-10 of `games.JUDGING`: cifar10, or a folder PATH/{train,test}/<class>/*."""
    weights: Path | None = None
    """Trained weights of the network."""
    cache: Path | None = None
    """SQLite file that keeps accuracies for later runs on the same network."""
    networks: Path = Path("runs/policy-networks")
    """Folder of the trained networks of `games.JUDGING`."""
    data_sets: tuple[str, ...] = ("digits", "cifar16")
    """Data sets of `games.JUDGING` to use."""
    targets: tuple[Target, ...] = (0.3, 0.5, 0.7)
    """Budgets."""
    seeds: Count = 3
    """Runs of each method that has random numbers."""
    methods: tuple[str, ...] = field(default_factory=lambda: tuple(METHODS))
    """Methods to run."""
    out: Path = Path("runs/policy-judged")
    """Folder of the results."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (("methods", METHODS), ("data_sets", RECIPES)):
            if unknown := set(getattr(self, name)) - set(known):
                raise ValueError(f"{name}: {min(unknown)!r} is unknown; choose among {', '.join(known)}")


Method = Callable[[FilterPruneEnv, TeamPolicy, int], dict[int, float]]
"""method(env, policy, seed) -> {evaluations: best accuracy}; the environment has one budget"""


def main(config: Config) -> None:
    """Evaluate what has no row yet, and print the table."""
    if any(method.startswith("cma") for method in config.methods):
        require_packages(["cma"], "CMA-ES", "benchmarks")
    for name in ("out", "networks"):
        check_writable(name, getattr(config, name), folder=True)
    policy, file = TeamPolicy.load(config.policy), config.out / "rows.jsonl"
    digest = hashlib.blake2b(config.policy.read_bytes(), digest_size=8).hexdigest()
    done = {_key(row) for row in rows.read_file(file)}
    for name, game in _games(config):
        weights = weights_fingerprint(game.problem.model)
        for target in config.targets:
            env = game.clone(target=target)
            for method in config.methods:
                for seed in range(config.seeds if method in RANDOM else 1):
                    row = {"network": name, "weights_fingerprint": weights, "target_macs": target}
                    row |= {"method": method, "seed": seed, "policy": digest if method.startswith("policy") else None}
                    if _key(row) in done:
                        continue
                    best = METHODS[method](env, policy, seed)
                    rows.append(file, row | {"best": {str(count): accuracy for count, accuracy in best.items()}})
        found = [row for row in rows.read_file(file) if row["weights_fingerprint"] == weights]
        print(table([row for row in found if row["policy"] in (None, digest)]), flush=True)


def table(found: Sequence[rows.Row]) -> str:
    """Return a Markdown table with a row for each method and number of evaluations."""
    targets = sorted({row["target_macs"] for row in found})
    lines = [
        f"| {found[0]['network']} | evaluations | {' | '.join(f'{100 * target:g} %' for target in targets)} | mean |",
        "|---" * (len(targets) + 3) + "|",
    ]
    for method in dict.fromkeys(row["method"] for row in found):
        mine = [row for row in found if row["method"] == method]
        for count in mine[0]["best"]:
            means = [np.mean([row["best"][count] for row in mine if row["target_macs"] == one]) for one in targets]
            cells = " | ".join(f"{100 * mean:.1f}" for mean in [*means, np.mean(means)])
            lines.append(f"| {method} | {count} | {cells} |")
    return "\n".join(lines) + "\n"


def _key(row: dict[str, Any]) -> str:
    return rows.canonical([row[name] for name in IDENTITY])


def _games(config: Config) -> Iterator[tuple[str, FilterPruneEnv]]:
    if config.network is None:
        chosen = [spec for spec in JUDGING if spec.data in config.data_sets]
        yield from make_games(chosen, config.networks, config.data, config.targets)
        return
    args = ProblemArgs(network=config.network, data=config.data, weights=config.weights, cache=config.cache)
    yield config.network, args.make_env(EnvConfig(target_macs=config.targets, rates=RATES, round_to=1))


def _policy(env: FilterPruneEnv, policy: TeamPolicy, seed: int) -> dict[int, float]:
    """Evaluate the greedy plan."""
    return {1: env.evaluator.accuracy(policy.plan(env))}


def _policy_imagined(env: FilterPruneEnv, policy: TeamPolicy, seed: int) -> dict[int, float]:
    """Evaluate the plan of the imagined episode with the highest Q_tot."""
    return {1: env.evaluator.accuracy(policy.plan(env, imagined_episodes=IMAGINED, seed=seed))}


def _policy_around(env: FilterPruneEnv, policy: TeamPolicy, seed: int) -> dict[int, float]:
    """Play the policy with a tenth of the actions random, without learning."""
    return _few_shot(env, policy, seed, **AROUND)


def _policy_learning(env: FilterPruneEnv, policy: TeamPolicy, seed: int) -> dict[int, float]:
    """Continue learning from the policy, with planning."""
    return _few_shot(env, policy, seed, **CONTINUED)


def _prior(env: FilterPruneEnv, policy: TeamPolicy, seed: int) -> dict[int, float]:
    """Evaluate the greedy plan of an agent that starts from the proposed rates and has learned nothing."""
    return {1: env.evaluator.accuracy(QMIX(env, settings(1, prior=True), seed).policy().plan(env))}


def _prior_around(env: FilterPruneEnv, policy: TeamPolicy, seed: int) -> dict[int, float]:
    """Play the proposed rates with a tenth of the actions random, without learning."""
    return _search(env, settings(NEVER, prior=True, **AROUND), None, seed, FEW, MORE)


def _prior_learning(env: FilterPruneEnv, policy: TeamPolicy, seed: int) -> dict[int, float]:
    """Learn from the proposed rates on, with planning."""
    return _search(env, settings(NEVER, prior=True, **CONTINUED), None, seed, FEW, MORE)


def _few_shot(env: FilterPruneEnv, policy: TeamPolicy, seed: int, **fields: Any) -> dict[int, float]:
    return _search(env, settings(NEVER, policy.config.mixer, **fields), policy, seed, FEW)


def _search(
    env: FilterPruneEnv, agent_settings: QMIXConfig, policy: TeamPolicy | None, seed: int, *counts: int
) -> dict[int, float]:
    """Return the best accuracies of an agent after so many evaluations."""
    _, result = qmix.run(env, counts[-1], seed, agent_settings, policy)
    return _best(result, *counts)


def _cma(env: FilterPruneEnv, policy: TeamPolicy, seed: int) -> dict[int, float]:
    """Search with CMA-ES from the uniform plan."""
    return _best(evolution.search(env, MORE, seed), FEW, MORE)


def _cma_insides(env: FilterPruneEnv, policy: TeamPolicy, seed: int) -> dict[int, float]:
    """Search with CMA-ES from the plan that only cuts inside blocks."""
    return _best(evolution.search(env, MORE, seed, insides(env, _target(env))), FEW, MORE)


def _cma_least_change(env: FilterPruneEnv, policy: TeamPolicy, seed: int) -> dict[int, float]:
    """Search with CMA-ES from the least-change plan."""
    return _best(evolution.from_least_change(env, MORE, seed), FEW, MORE)


def _random(env: FilterPruneEnv, policy: TeamPolicy, seed: int) -> dict[int, float]:
    """Play randomly."""
    return _best(random_search.search(env, FEW, seed), FEW)


def _rule(name: str, env: FilterPruneEnv, policy: TeamPolicy, seed: int) -> dict[int, float]:
    """Evaluate the plan of a rule without a search."""
    return {1: env.evaluator.accuracy(RULES[name](env, _target(env)))}


def _copied(env: FilterPruneEnv, policy: TeamPolicy, seed: int) -> dict[int, float]:
    """Evaluate the plan with the rates of the nearest layers of ResNet-20's best plan."""
    return {1: env.evaluator.accuracy(copied.plan(env, _target(env)))}


METHODS: dict[str, Method] = {
    "prior": _prior,
    "prior_around": _prior_around,
    "prior_learning": _prior_learning,
    "policy": _policy,
    "policy_imagined": _policy_imagined,
    "policy_around": _policy_around,
    "policy_learning": _policy_learning,
    **{name: partial(_rule, name) for name in RULES},
    "copied": _copied,
    "random": _random,
    "cma": _cma,
    "cma_insides": _cma_insides,
    "cma_least_change": _cma_least_change,
}
RANDOM = {
    "prior_around",
    "prior_learning",
    "policy_imagined",
    "policy_around",
    "policy_learning",
    "random",
    "cma",
    "cma_insides",
    "cma_least_change",
}
"""Methods with random numbers."""


def _target(env: FilterPruneEnv) -> float:
    assert env.budget.target is not None
    return env.budget.target


def _best(result: SearchResult, *counts: int) -> dict[int, float]:
    """Return the best accuracy after so many evaluations."""
    return {count: max((one for one in result.evaluations[:count] if one is not None), default=0.0) for count in counts}


if __name__ == "__main__":
    with one_line_errors("Interrupted. Finished rows are kept; the same command resumes."):
        main(tyro.cli(Config, prog="python -m benchmarks.policy.judge", description=__doc__))
