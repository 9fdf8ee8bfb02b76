"""Which of QMIXConfig's defaults pay? Each against its alternatives, by the regret to the best plan there is.

    python -m benchmarks.qmix.ablation --workers 2
    python -m benchmarks.qmix.ablation --network resnet20 --data PATH --weights FILE --only mixer recurrent

FilterPruneEnv with few rates and rounds: on `digits` every plan that an episode can end with is evaluated first, so
that the optimum is known. Where they are too many (`--network resnet20`), the best plan of all runs stands in for it.

A run learns until it has evaluated `budget` distinct plans, or played three times as many episodes. Its regret is the
optimum's accuracy less that of the best plan it has met, in percentage points. Exploration ends when half of the budget
is played. One row a run goes to `out`; runs whose row is there are not repeated.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import tyro

from prune_env import FilterPruneEnv, make_env
from qmix_agent import QMIXConfig

from ..compare.jobs import Job, complete
from ..compare.methods import qmix, random_search
from ..compare.methods.budgeted import PROPOSALS
from ..compare.statistics import difference_interval, mean_interval
from ..make.enumerate_plans import accuracies, reachable

VALUES: dict[str, tuple[Any, ...]] = {
    "mixer": ("qmix", "vdn", "iql"),
    "recurrent": (True, False),
    "double_q": (True, False),
    "td_lambda": (0.0, 0.6, 1.0),
    "off_policy_correction": (True, False),
    "loss": ("huber", "mse"),
    "updates_per_episode": (1, 4, 8),
    "exploration": ("agent", "team", "noisy"),
    "standardise_returns": (True, False),
    "learning_rate": (3e-4, 1e-3, 3e-3),
    "target_tau": (None, 0.01),
    "target_update_every": (50, 200),
    "hidden_size": (32, 64, 128),
    "last_action": (True, False),
    "agent_id": (True, False),
    "layer_norm": (True, False),
    "parameter_sharing": (True, False),
    "hypernet_layers": (1, 2),
    "mixing_weights": ("abs", "softplus"),
    "priority_alpha": (0.0, 0.6),
}
"""Default and alternatives of each field, in any order: what is QMIXConfig's default is passed over."""
DEFAULT, RANDOM = "default", "random search"


@dataclass(frozen=True)
class Config:
    network: str = "small_cnn"
    """a registered network"""
    data: str = "digits"
    """digits, cifar10, cifar100, or a folder PATH/{train,test}/<class>/*"""
    weights: Path | None = None
    """a file of its weights; by default they are trained, and cached"""
    target_macs: float = 0.2
    """fraction of the MACs that may stay"""
    rates: tuple[float, ...] = (0.0, 0.25, 0.5)
    """what an agent chooses from"""
    rounds: int = 2
    """of an episode"""
    budget: int = 100
    """distinct plans that a run may evaluate"""
    seeds: int = 5
    """runs with different seeds"""
    only: tuple[str, ...] = ()
    """fields; by default all"""
    workers: int = 1
    """processes, each with one thread"""
    cache: Path = Path("runs/qmix_ablation.sqlite")
    """accuracies of plans, for all runs"""
    out: Path = Path("runs/qmix_ablation.jsonl")
    """where results go"""


def main(config: Config) -> None:
    torch.set_num_threads(1)
    unknown = set(config.only) - set(VALUES)
    if unknown:
        raise ValueError(f"only must name fields of {sorted(VALUES)}, got {sorted(unknown)}")
    env = problem(_problem(config), config.cache)
    try:
        known: list[float] = list(accuracies(env, reachable(env)).values())
        print(
            f"{len(known)} plans; the best has {100 * max(known):.2f} %, the mean {100 * sum(known) / len(known):.2f}"
        )
    except ValueError as error:  # too many
        known = []
        print(f"not enumerated: {error}. Regret is to the best plan of all runs")
    settings = alternatives(config.only)
    jobs = [
        {"problem": _problem(config), "budget": config.budget, "most_episodes": PROPOSALS * config.budget}
        | {"setting": name, "fields": fields, "seed": seed}
        for seed in range(config.seeds)
        for name, fields in settings.items()
    ]
    rows = complete(jobs, partial(run, file=config.cache), config.out, config.workers)
    best = max(known or [max(row["curve"]) for row in rows])
    print(table(rows, best))


def alternatives(only: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Name of each setting and what it changes; the default and random search come first."""
    defaults = dataclasses.asdict(QMIXConfig())
    settings: dict[str, dict[str, Any]] = {DEFAULT: {}, RANDOM: {}}
    for name, values in VALUES.items():
        if not only or name in only:
            settings |= {f"{name} = {value}": {name: value} for value in values if value != defaults[name]}
    return settings


def run(job: Job, file: Path) -> dict[str, Any]:
    """Best accuracy after each evaluation, and the episodes it took. file: the cache of accuracies."""
    env = problem(job["problem"], file)
    env.archive.load_state_dict({"entries": []})  # of the run before
    if job["setting"] == RANDOM:
        result = random_search.search(env, job["budget"], job["seed"])
    else:
        result = qmix.learn(env, job["budget"], job["seed"], **job["fields"])
    return {"curve": result.curve, "episodes": result.proposals, "seconds": round(result.seconds, 2)}


def table(rows: Sequence[Job], best: float) -> str:
    """Markdown: regrets in percentage points with 95 % intervals, and the difference to the default's."""
    lines = [
        "| setting | regret after half | after all | less the default's | episodes | seconds |",
        "|---|---|---|---|---|---|",
    ]
    names = list(dict.fromkeys(row["job"]["setting"] for row in rows))
    final = {name: [regret(row, best, 1.0) for row in rows if row["job"]["setting"] == name] for name in names}
    for name in names:
        mine = [row for row in rows if row["job"]["setting"] == name]
        half = mean_interval([regret(row, best, 0.5) for row in mine])
        whole = mean_interval(final[name])
        against = (
            "" if name == DEFAULT else "{:+.2f} ± {:.2f}".format(*difference_interval(final[name], final[DEFAULT]))
        )
        episodes = f"{sum(row['episodes'] for row in mine) / len(mine):.0f}"
        seconds = sum(row["seconds"] for row in mine) / len(mine)
        lines.append(
            f"| {name} | {half[0]:.2f} ± {half[1]:.2f} | {whole[0]:.2f} ± {whole[1]:.2f} | {against} | {episodes} "
            f"| {seconds:.1f} |"
        )
    return "\n".join(lines)


def regret(row: Job, best: float, share: float) -> float:
    """Percentage points to the best plan, after this share of the budget. A run that evaluated fewer plans, as it
    played the same ones again and again, counts with what it had."""
    curve = row["curve"]
    return 100 * (best - curve[min(len(curve), round(share * row["job"]["budget"])) - 1])


def _problem(config: Config) -> dict[str, Any]:
    weights = str(config.weights) if config.weights else None
    names = ("network", "data", "target_macs", "rounds")
    return {name: getattr(config, name) for name in names} | {"rates": list(config.rates), "weights": weights}


def problem(settings: dict[str, Any], file: Path) -> FilterPruneEnv:
    """One environment a process."""
    return _made(json.dumps(settings), file)


@cache
def _made(settings: str, file: Path) -> FilterPruneEnv:
    return make_env(**json.loads(settings), cache=file, progress=False)


if __name__ == "__main__":
    main(tyro.cli(Config, prog="python -m benchmarks.qmix.ablation", description=__doc__))
