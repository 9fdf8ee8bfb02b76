"""Compare the defaults of QMIXConfig with their alternatives, by the regret to the best plan.

    python -m benchmarks.qmix.ablation --jobs 2 --cache runs/qmix_ablation.sqlite
    python -m benchmarks.qmix.ablation --network resnet20 --data PATH --weights FILE --fields mixer recurrent

The game is FilterPruneEnv with few rates and rounds. On `digits`, every plan that an episode can end with is evaluated
first, so that the optimum is known; with a cache, all runs and processes share these accuracies. Where there are too
many plans (`--network resnet20`), regret is relative to the best plan of all runs.

A run learns until it has evaluated `max_plans` distinct plans, or has played three times as many episodes. Its regret
is the accuracy of the optimum minus that of the best plan it has found, in percentage points. Epsilon falls over the
first `max_plans` / 2 episodes. One row per run is appended to `out`; runs that already have a row are skipped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from prune_env import EnvConfig, FilterPruneEnv
from prune_env.common.command import check_writable, one_line_errors
from prune_env.common.fingerprints import weights_fingerprint
from prune_env.common.settings import Count, Settings
from prune_env.game.arguments import ProblemArgs
from qmix_agent import QMIXConfig

from ..compare import rows as compared
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

    problem: Annotated[ProblemArgs, tyro.conf.OmitArgPrefixes] = field(default_factory=ProblemArgs)
    """The network, its data, and where plans are evaluated."""
    env: Annotated[EnvConfig, tyro.conf.OmitArgPrefixes] = field(
        default_factory=lambda: EnvConfig(target_macs=0.2, rates=(0.0, 0.25, 0.5), rounds=2)
    )
    """The game."""
    max_plans: Count = 100
    """Distinct plans that each run may evaluate."""
    seeds: Count = 5
    """Runs with different seeds."""
    fields: tuple[str, ...] = ()
    """Fields to compare; by default all."""
    jobs: Count = 1
    """Number of processes, each with one thread."""
    out: Path = Path("runs/qmix_ablation.jsonl")
    """File of the results."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := set(self.fields) - set(VALUES):
            raise ValueError(f"fields must name settings of {sorted(VALUES)}, got {sorted(unknown)}")


def main(config: Config) -> None:
    """Complete all runs and print the table."""
    check_writable("out", config.out)
    torch.set_num_threads(1)
    env = _make_env(config.problem, config.env)
    try:
        known: list[float] = list(accuracies(env, reachable(env)).values())
        print(f"{len(known)} plans: best {100 * max(known):.2f} %, mean {100 * sum(known) / len(known):.2f} %")
    except ValueError as error:  # too many plans
        known = []
        print(f"The optimum is unknown: {error}. Regret is relative to the best plan of all runs")
    settings = alternatives(config.fields)
    problem = compared.problem_of(config.problem, config.env)
    game = {"problem": problem, "weights_fingerprint": weights_fingerprint(env.problem.model)}
    jobs = [
        game
        | {"max_plans": config.max_plans, "max_episodes": PROPOSALS * config.max_plans}
        | {"setting": name, "fields": fields, "seed": seed}
        for seed in range(config.seeds)
        for name, fields in settings.items()
    ]
    run_job = partial(run, problem=config.problem, config=config.env)
    rows = complete(jobs, run_job, config.out, config.jobs)
    best = max(known or [max(row["curve"]) for row in rows])
    print(table(rows, best))


def alternatives(fields: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Return the fields that each setting changes, by its name. The default and random search come first.

    Args:
        fields: Settings to compare; an empty sequence selects all.
    """
    defaults = dataclasses.asdict(QMIXConfig())
    settings: dict[str, dict[str, Any]] = {DEFAULT: {}, RANDOM: {}}
    for name, values in VALUES.items():
        if not fields or name in fields:
            settings |= {f"{name} = {value}": {name: value} for value in values if value != defaults[name]}
    return settings


def run(job: Job, problem: ProblemArgs, config: EnvConfig) -> dict[str, Any]:
    """Search with one setting and seed.

    Args:
        job: The setting, the number of plans and the seed.
        problem: Network and data.
        config: The game.

    Returns:
        Best accuracy after each evaluation, number of episodes, and seconds.
    """
    env = _make_env(problem, config)
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


@cache
def _make_env(problem: ProblemArgs, config: EnvConfig) -> FilterPruneEnv:
    """Return the environment; there is one per process."""
    return problem.make_env(config)


if __name__ == "__main__":
    with one_line_errors():
        main(tyro.cli(Config, prog="python -m benchmarks.qmix.ablation", description=__doc__))
