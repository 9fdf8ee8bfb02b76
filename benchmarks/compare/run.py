"""Compare search methods on one problem, all by the same rules.

    python -m benchmarks.compare --network resnet20 --data PATH --weights FILE --round-to 1 \
        --target-macs 0.5 0.3 --max-plans 300

Every method may evaluate the same number of distinct plans, all of the same cost. Its best plans are scored on the
whole reward split and distilled briefly, the best of them is distilled fully, and the test set is read once.

Every run adds one row to the folder `out`. Runs that have a row are not repeated, so the same command resumes after
Ctrl-C. Seeds run one after another: an interrupted comparison has the same seeds for all methods, or one more for some.
A run that was searched earlier with --no-finalise is not searched again, so searching and finalising may happen on
different machines. `benchmarks.compare.report` makes tables and plots of the rows.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import itertools
import platform
import time
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated

import torch
import tyro
from tqdm import tqdm

from prune_env import EnvConfig, FilterPruneEnv
from prune_env.common.command import check_writable, one_line_errors, require_packages
from prune_env.common.device import Precision
from prune_env.common.fingerprints import weights_fingerprint
from prune_env.common.settings import Count, Positive, Settings
from prune_env.data import DataSplits
from prune_env.finalise import Finaliser, accuracy
from prune_env.game.arguments import ProblemArgs
from prune_env.game.config import differences
from prune_env.training.distillation import DistillationConfig, Teacher

from . import rows
from .jobs import results
from .methods import METHODS, NEEDS, SearchResult, method_settings
from .rows import Row

CANDIDATES = 10
"""Best plans of a search that its row keeps: a later finalisation chooses among them."""
PACKAGES = ("prune-env", "torch", "numpy", "cma", "optuna", "stable-baselines3", "torch-pruning", "nvidia-modelopt")


@dataclass(frozen=True)
class Config(Settings):
    problem: Annotated[ProblemArgs, tyro.conf.OmitArgPrefixes] = field(default_factory=ProblemArgs)
    """The network, its data, and where plans are evaluated. With a cache, the wall time of searches is not kept."""
    env: Annotated[EnvConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=lambda: EnvConfig(linear=False))
    """The game. Of several targets, each is searched alone."""
    max_plans: Count = 300
    """Distinct plans that each run may evaluate."""
    seeds: Count = 3
    """Runs with different seeds."""
    methods: tuple[str, ...] = tuple(METHODS)
    """Search methods."""
    finalise: bool = True
    """Distil and test the best plans; otherwise only the searches are compared."""
    finalists: Count = 4
    """Number of best plans of a run that get the short distillation."""
    short_epochs: Positive = 1.0
    """Epochs of the finalists' distillation."""
    out: Path = Path("runs/compare")
    """Folder of the results."""
    jobs: Count = 1
    """Number of processes."""
    shard: str = "0/1"
    """i/n: run the i-th of n equal parts, for n commands that share `out`; i counts from 0."""
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    """The training after the search. Its seed is that of the run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := set(self.methods) - set(METHODS):
            raise ValueError(f"method {min(unknown)!r} is unknown; choose among {', '.join(METHODS)}")
        if self.finalists > CANDIDATES:
            raise ValueError(f"finalists must be at most {CANDIDATES}: a search keeps no more; got {self.finalists}")
        if None in self.env.targets or self.env.cost != "macs":
            raise ValueError("target-macs must be set: methods are compared at equal budgets of MACs")
        if self.env.round_finetune_batches:
            raise ValueError(
                "with round-finetune-batches a plan no longer names one network, but this comparison counts plans; use "
                "finetune-batches, which starts from the original weights"
            )
        part, _, parts = self.shard.partition("/")
        if not (part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
            raise ValueError(f"shard must be i/n with 0 <= i < n, such as 0/4; got {self.shard!r}")

    @property
    def file(self) -> Path:
        """The file of this command's rows; every shard has its own."""
        return self.out / f"rows-{self.shard.replace('/', '-of-')}.jsonl"

    def identity(self, seed: int, target_macs: float, method: str) -> Row:
        """Return what identifies a run.

        Args:
            seed: Seed of search and distillation.
            target_macs: Fraction of the original MACs that may stay.
            method: Name of the method.
        """
        problem = rows.problem_of(self.problem, self.env)
        problem.pop("target_macs", None)
        distillation = dataclasses.asdict(self.distillation)
        del distillation["seed"]
        finalisation = {"finalists": self.finalists, "short_epochs": self.short_epochs, **distillation}
        return {
            "problem": problem,
            "target_macs": target_macs,
            "max_plans": self.max_plans,
            "finalisation": finalisation if self.finalise else None,
            "method": method,
            "seed": seed,
        }


def main(config: Config) -> None:
    check_writable("out", config.out, folder=True)
    for method in config.methods:
        require_packages(NEEDS.get(method, []), f"method {method!r}", "benchmarks")
    found = rows.read([config.out]) if config.out.is_dir() else []
    known = {rows.identity(row): row for row in found}
    part, parts = map(int, config.shard.split("/"))
    targets = [target for target in config.env.targets if target is not None]
    everything = itertools.product(range(config.seeds), targets, config.methods)
    # Shifted by one with every seed, so that no shard gets only the slow methods.
    mine = [run for number, run in enumerate(everything) if (number + run[0]) % parts == part]
    stages = [config.identity(*run) | stage for run in mine for stage in ({}, {"finalisation": None})]
    kept = [known[key] for key in map(rows.identity, stages) if key in known]
    for row in kept:
        _check_settings(config, row)
    todo = [run for run in mine if rows.identity(config.identity(*run)) not in known]
    rivals = [row for row in found if _compares(config, row)]
    if todo and rivals:
        now = weights_fingerprint(make_env(config, todo[0][1]).problem.model)
        rows.check_weights(rivals, now, config.problem.weights, config.out)
    if config.problem.tabulated:
        for target in {run[1] for run in todo}:
            make_env(config, target)  # refuses settings that were not tabulated before the first run
    if todo and config.jobs > 1 and config.problem.weights is None and not config.problem.tabulated:
        make_env(config, todo[0][1])  # trains the network, if necessary, before several processes need it
    threads = max(1, torch.get_num_threads() // config.jobs)
    searched = {key: row for key, row in known.items() if "candidates" in row}
    jobs = [(*run, searched.get(rows.identity(config.identity(*run) | {"finalisation": None}))) for run in todo]
    made = results(jobs, partial(_run, config), config.jobs, threads)
    for _, row in tqdm(made, total=len(mine), initial=len(mine) - len(todo), unit="run"):
        rows.append(config.file, row)
        tqdm.write(_line(row))
    print(f"{len(mine)} runs are in {config.out}; python -m benchmarks.compare.report {config.out}")


def _check_settings(config: Config, row: Row) -> None:
    """Refuse a row whose method had other settings: one name would stand for two methods."""
    before, now = row.get("method_settings", {}), method_settings(row["method"], config.max_plans)
    if before != now:
        changes = (f"{name} from {was} to {is_now}" for name, was, is_now in differences(before, now))
        raise ValueError(
            f"{config.out} has a row of {row['method']} with other settings (changed since: "
            f"{', '.join(changes) if before else 'not recorded'}); give another --out, or drop it from --methods"
        )


def _compares(config: Config, row: Row) -> bool:
    """Whether a row belongs to this command's problem, for any method, target and seed."""
    mine = config.identity(0, 0, config.methods[0])
    return rows.canonical(rows.settings(row)["problem"]) == rows.canonical(rows.settings(mine)["problem"])


def _line(row: Row) -> str:
    """Describe a finished run in one line."""
    found = f"{100 * row['search_accuracy']:.2f} % in the search after {row['evaluations']} plans"
    tested = f", {100 * row['test_accuracy']:.2f} % of the test set" if row["finalisation"] is not None else ""
    return f"{100 * row['target_macs']:g} % of the MACs, seed {row['seed']}, {row['method']}: {found}{tested}"


def run(config: Config, seed: int, target_macs: float, method: str, searched: Row | None = None) -> Row:
    """Run one search and finalise its best plans.

    Args:
        config: The comparison.
        seed: Seed of the method.
        target_macs: Fraction of the MACs that may stay.
        method: Name of the search method.
        searched: The row of the same search without finalisation, if there is one.

    Returns:
        The row.
    """
    env = make_env(config, target_macs)  # a new one, so that no run profits from another
    if searched is None:
        result = METHODS[method](env, config.max_plans, seed)
        if not result.entries:
            raise RuntimeError(f"method {method!r} found no plan within {target_macs} of the MACs; raise max-plans")
        searched = _searched(config, env, result) | {"method_settings": method_settings(method, config.max_plans)}
    if config.finalise:
        searched = searched | _finalised(config, env, searched["candidates"][: config.finalists], seed)
    return searched | config.identity(seed, target_macs, method)


def _searched(config: Config, env: FilterPruneEnv, result: SearchResult) -> Row:
    candidates = [
        {"plan": entry.plan, "macs_ratio": entry.macs_ratio, "search_accuracy": entry.accuracy}
        for entry in result.best(CANDIDATES)
    ]
    return {
        **candidates[0],
        "candidates": candidates,
        "full_plan": env.problem.full_plan,
        "original_search_accuracy": env.evaluator.original_accuracy,
        "evaluations": len(result.evaluations),
        "proposals": result.proposals,
        "weights_fingerprint": weights_fingerprint(env.problem.model),
        "optimum": getattr(env.evaluator, "optimum", None),
        "curve": result.curve,
        "search_seconds": None if config.problem.cache else round(result.seconds, 2),  # the cache would falsify it
        "search_machine": machine(config.problem.device),
    }


def _finalised(config: Config, env: FilterPruneEnv, candidates: list[Row], seed: int) -> Row:
    """Distil the best plans of the search. Test accuracies choose nothing."""
    candidate_of = {tuple(candidate["plan"]): candidate for candidate in candidates}
    problem, device = env.problem, config.problem.device
    finaliser = Finaliser(
        env,
        dataclasses.replace(config.distillation, seed=seed),
        short_epochs=config.short_epochs,
        teacher=_teacher(
            _Network(weights_fingerprint(problem.model), problem.model), device, config.distillation.precision, seed
        ),
        device=device,
        progress=False,
    )
    start = time.perf_counter()
    finalists = finaliser.rank(list(candidate_of))
    winner, middle = finalists[0], time.perf_counter()
    network = finaliser.distil(winner.plan)
    end = time.perf_counter()
    data = problem.data
    return {
        "plan": winner.plan,
        "macs_ratio": candidate_of[winner.plan]["macs_ratio"],
        "rescored_accuracy": winner.recalibrated_accuracy,
        "short_test_accuracy": accuracy(winner.network, data, data.test, device=device),
        "test_accuracy": accuracy(network, data, data.test, device=device),
        "original_test_accuracy": accuracy(problem.model, data, data.test, device=device),
        "finalists": [
            {
                "plan": finalist.plan,
                "search_accuracy": candidate_of[finalist.plan]["search_accuracy"],
                "rescored_accuracy": finalist.recalibrated_accuracy,
                "distilled_accuracy": finalist.distilled_accuracy,
            }
            for finalist in finalists
        ],
        "short_seconds": round(middle - start, 2),
        "full_seconds": round(end - middle, 2),
        "finalise_machine": machine(device),
    }


def make_env(config: Config, target_macs: float) -> FilterPruneEnv:
    """Make a new environment on the data that this process has loaded."""
    settings = dataclasses.replace(config.env, target_macs=target_macs)
    return config.problem.make_env(settings, _data(config.problem))


def _run(config: Config, arguments: tuple[int, float, str, Row | None]) -> Row:
    return run(config, *arguments)


@lru_cache(maxsize=1)
def _data(args: ProblemArgs) -> DataSplits:
    return args.load_data()


@dataclass(frozen=True)
class _Network:
    """A network that equals every other network with the same weights, so that it can be a cache key."""

    fingerprint: str
    module: torch.nn.Module = field(compare=False)


@lru_cache(maxsize=1)
def _teacher(network: _Network, device: str, precision: Precision, seed: int) -> Teacher:
    """Return one teacher for all runs of a seed in this process, which train on the same batches."""
    return Teacher(network.module, device, precision=precision)


def machine(device: str) -> Row:
    """Return the device, the number of threads, and the versions of packages."""
    cuda = torch.device(device).type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else platform.processor() or platform.machine()
    return {"device": name, "threads": torch.get_num_threads(), "versions": _versions()}


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def command() -> None:
    """Run the command line."""
    with one_line_errors("Interrupted. Finished runs are kept; the same command resumes."):
        main(tyro.cli(Config, prog="python -m benchmarks.compare", description=__doc__))
