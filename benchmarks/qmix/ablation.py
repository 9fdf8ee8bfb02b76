"""Compare the defaults of QMIXConfig with their alternatives, by the regret to the best plan.

    python -m benchmarks.qmix.ablation --workers 2
    python -m benchmarks.qmix.ablation --network resnet20 --data PATH --weights FILE --only mixer recurrent

The game is FilterPruneEnv with few rates and rounds. On `digits`, every plan that an episode can end with is evaluated
first, so that the optimum is known. Where there are too many plans (`--network resnet20`), regret is relative to the
best plan of all runs.

A run learns until it has evaluated `max_plans` distinct plans, or has played three times as many episodes. Its regret
is the accuracy of the optimum minus that of the best plan it has found, in percentage points. Epsilon falls over the
first `max_plans` / 2 episodes. One row per run is appended to `out`; runs that already have a row are skipped.
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
from prune_env.common.command import check_writable, one_line_errors
from prune_env.common.settings import Count, Settings
from prune_env.game.budget import TargetMacs
from prune_env.training.pretrained import check_names
from qmix_agent import QMIXConfig

from ..compare.jobs import Job, complete
from ..compare.methods import qmix, random_search
from ..compare.methods.counted import PROPOSALS
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
    "standardise_returns": (True, False),
    "learning_rate": (3e-4, 1e-3, 3e-3),
    "target_tau": (None, 0.01),
    "target_update_every": (50, 200),
    "hidden_size": (32, 64, 128),
    "last_action": (True, False),
    "agent_id": (True, False),
    "layer_norm": (True, False),
    "parameter_sharing": (True, False),
}
"""Default and alternatives of each field, in any order; the default is skipped."""
DEFAULT, RANDOM = "default", "random search"


@dataclass(frozen=True)
class Config(Settings):
    """Command line of the ablation."""

    network: str = "small_cnn"
    """a registered network"""
    data: str = "digits"
    """digits, cifar10, cifar100, or a directory PATH/{train,test}/<class>/*"""
    weights: Path | None = None
    """file of the network's weights; by default they are trained and cached"""
    target_macs: TargetMacs = 0.2
    """fraction of the MACs that may remain"""
    rates: tuple[float, ...] = (0.0, 0.25, 0.5)
    """pruning rates that an agent chooses from"""
    rounds: Count = 2
    """rounds of an episode"""
    max_plans: Count = 100
    """distinct plans that a run may evaluate"""
    seeds: Count = 5
    """number of seeds"""
    only: tuple[str, ...] = ()
    """fields to compare; by default all"""
    workers: Count = 1
    """processes, each with one thread"""
    cache: Path = Path("runs/qmix_ablation.sqlite")
    """file that caches the accuracies of plans for all runs"""
    out: Path = Path("runs/qmix_ablation.jsonl")
    """file of the results"""


def main(config: Config) -> None:
    """Complete all runs and print the table."""
    check_writable("out", config.out)
    check_writable("cache", config.cache)
    check_names(config.network, config.weights)
    torch.set_num_threads(1)
    unknown = set(config.only) - set(VALUES)
    if unknown:
        raise ValueError(f"only must name fields of {sorted(VALUES)}, got {sorted(unknown)}")
    game = _game(config)
    env = _make_env(game, config.cache)
    try:
        known: list[float] = list(accuracies(env, reachable(env)).values())
        print(f"{len(known)} plans: best {100 * max(known):.2f} %, mean {100 * sum(known) / len(known):.2f} %")
    except ValueError as error:  # too many plans
        known = []
        print(f"The optimum is unknown: {error}. Regret is relative to the best plan of all runs")
    settings = alternatives(config.only)
    jobs = [
        {"game": game, "max_plans": config.max_plans, "max_episodes": PROPOSALS * config.max_plans}
        | {"setting": name, "fields": fields, "seed": seed}
        for seed in range(config.seeds)
        for name, fields in settings.items()
    ]
    rows = complete(jobs, partial(run, file=config.cache), config.out, config.workers)
    best = max(known or [max(row["curve"]) for row in rows])
    print(table(rows, best))


def alternatives(only: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Return the fields that each setting changes, by its name. The default and random search come first."""
    defaults = dataclasses.asdict(QMIXConfig())
    settings: dict[str, dict[str, Any]] = {DEFAULT: {}, RANDOM: {}}
    for name, values in VALUES.items():
        if not only or name in only:
            settings |= {f"{name} = {value}": {name: value} for value in values if value != defaults[name]}
    return settings


def run(job: Job, file: Path) -> dict[str, Any]:
    """Search with one setting and seed.

    Args:
        job: The game, the setting and the seed.
        file: Cache of accuracies.

    Returns:
        Best accuracy after each evaluation, number of episodes, and seconds.
    """
    env = _make_env(job["game"], file)
    env.archive.load_state_dict({"entries": []})  # the environment is shared with the runs before
    if job["setting"] == RANDOM:
        result = random_search.search(env, job["max_plans"], job["seed"])
    else:
        result = qmix.learn(env, job["max_plans"], job["seed"], **job["fields"])
    return {"curve": result.curve, "episodes": result.proposals, "seconds": round(result.seconds, 2)}


def table(rows: Sequence[Job], best: float) -> str:
    """Return a Markdown table of regrets in percentage points.

    Args:
        rows: One row per run.
        best: Accuracy of the best plan.

    Returns:
        Regrets after half and all of the plans with 95 % intervals, and the difference from the default.
    """
    lines = [
        "| setting | regret after half | regret after all | difference from default | episodes | seconds |",
        "|---|---|---|---|---|---|",
    ]
    names = list(dict.fromkeys(row["job"]["setting"] for row in rows))
    final = {name: [regret(row, best, 1.0) for row in rows if row["job"]["setting"] == name] for name in names}
    for name in names:
        runs = [row for row in rows if row["job"]["setting"] == name]
        half = mean_interval([regret(row, best, 0.5) for row in runs])
        whole = mean_interval(final[name])
        difference = ""
        if name != DEFAULT:
            difference = "{:+.2f} ± {:.2f}".format(*difference_interval(final[name], final[DEFAULT]))
        cells = [
            name,
            "{:.2f} ± {:.2f}".format(*half),
            "{:.2f} ± {:.2f}".format(*whole),
            difference,
            f"{sum(row['episodes'] for row in runs) / len(runs):.0f}",
            f"{sum(row['seconds'] for row in runs) / len(runs):.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def regret(row: Job, best: float, fraction: float) -> float:
    """Return the regret after a fraction of the plans, in percentage points.

    A run that evaluated fewer plans, because it played the same ones repeatedly, counts with its last value.

    Args:
        row: Row of one run.
        best: Accuracy of the best plan.
        fraction: Fraction of `max_plans`.

    Returns:
        `best` minus the best accuracy found, times 100.
    """
    curve = row["curve"]
    return 100 * (best - curve[min(len(curve), round(fraction * row["job"]["max_plans"])) - 1])


def _game(config: Config) -> dict[str, Any]:
    """Return the arguments of `make_env` as plain JSON."""
    weights = str(config.weights) if config.weights else None
    names = ("network", "data", "target_macs", "rounds")
    return {name: getattr(config, name) for name in names} | {"rates": list(config.rates), "weights": weights}


def _make_env(game: dict[str, Any], file: Path) -> FilterPruneEnv:
    """Return the environment of a game; there is one per process."""
    return _cached_env(json.dumps(game), file)


@cache
def _cached_env(game: str, file: Path) -> FilterPruneEnv:
    return make_env(**json.loads(game), cache=file, progress=False)


if __name__ == "__main__":
    with one_line_errors():
        main(tyro.cli(Config, prog="python -m benchmarks.qmix.ablation", description=__doc__))
