"""Search methods on one problem, all by the same rules.

    python -m benchmarks.compare --network resnet20 --data PATH --weights FILE --target-macs 0.5 0.3 --budget 300

Every method may evaluate the same number of distinct plans, all of the same cost. Its best plans are then scored on the
whole reward split and distilled shortly, the best of them fully, and the test set is read once.

One row a run goes to the folder `out`; runs whose row is there are not repeated, so the same command goes on after
Ctrl-C. Seeds come one after another: stopped early, all methods have the same seeds, or one more. A run that was
searched before, with --no-finalise, is not searched again: searching and finalising may be done on different machines.
`benchmarks.compare.report` makes tables and pictures of the rows.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import itertools
import platform
import sys
import time
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from tqdm import tqdm

from prune_env import EnvConfig, FilterPruneEnv, make_env
from prune_env.common.device import check_device
from prune_env.common.fingerprints import weights_fingerprint
from prune_env.data import DataSplits, load
from prune_env.finalise import accuracy, choose, distil_fully
from prune_env.game.config import differences
from prune_env.training.distillation import DistillationConfig, Teacher

from . import rows
from .jobs import results
from .methods import METHODS, SearchResult, method_settings
from .rows import Row

CANDIDATES = 10
"""Best plans of a search that its row keeps: a later finalisation chooses among them."""
PACKAGES = ("prune-env", "torch", "numpy", "cma", "optuna", "stable-baselines3")


@dataclass(frozen=True)
class Config:
    network: str = "small_cnn"
    """a registered network"""
    data: str = "digits"
    """digits, cifar10, cifar100, or a folder PATH/{train,test}/<class>/*"""
    weights: Path | None = None
    """a file of its weights; by default they are trained, and cached"""
    target_macs: tuple[float, ...] = (0.5,)
    """fraction of the MACs that may stay"""
    budget: int = 300
    """distinct plans that each run may evaluate"""
    seeds: int = 3
    """runs with different seeds"""
    methods: tuple[str, ...] = tuple(METHODS)
    """which search methods"""
    finalise: bool = True
    """distil and test what was found; without it the search alone is compared"""
    finalists: int = 4
    """the best plans of a run, which all get the short distillation"""
    short_epochs: float = 1.0
    """epochs of the finalists' distillation"""
    evaluator: Literal["local", "table"] = "local"
    """table: the tabulated problem, small_cnn on digits, whose answers are looked up"""
    device: str = "cpu"
    """cpu or cuda"""
    cache: Path | None = None
    """a file that keeps accuracies for other runs; no wall time of the search is then kept, all else stays the same"""
    out: Path = Path("runs/compare")
    """where results go"""
    jobs: int = 1
    """processes"""
    shard: str = "0/1"
    """i/n: the i-th of n equal parts of the runs, for n commands that share `out`; i counts from 0"""
    env: EnvConfig = field(default_factory=EnvConfig)
    """The game; its target-macs is not read: give --target-macs."""
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    """The training after the search; its seed is that of the run."""

    def __post_init__(self) -> None:
        if unknown := set(self.methods) - set(METHODS):
            raise ValueError(f"method {min(unknown)!r} is unknown; choose among {', '.join(METHODS)}")
        if min(self.budget, self.seeds, self.finalists, self.jobs) < 1 or self.short_epochs <= 0:
            raise ValueError("budget, seeds, finalists and jobs must be at least 1, and short-epochs above 0")
        if self.finalists > CANDIDATES:
            raise ValueError(f"finalists must be at most {CANDIDATES}, as many as a search keeps; got {self.finalists}")
        if self.env.target_macs != EnvConfig().target_macs:
            raise ValueError(
                f"--env.target-macs {self.env.target_macs} is not read, as a comparison may have several; give "
                "--target-macs"
            )
        if self.env.round_finetune_batches:
            raise ValueError(
                "with round-finetune-batches a plan no longer names a network, and plans are what is counted here; "
                "take finetune-batches (--env.finetune-batches), which trains each plan's network anew"
            )
        part, _, parts = self.shard.partition("/")
        if not (part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
            raise ValueError(f"shard must be i/n with 0 <= i < n, such as 0/4; got {self.shard!r}")
        check_device(self.device)

    @property
    def file(self) -> Path:
        """Each of several commands writes to a file of its own."""
        return self.out / f"rows-{self.shard.replace('/', '-of-')}.jsonl"

    @property
    def settings(self) -> dict[str, Any]:
        """The environment's, without the target. Beside a table only what differs from the defaults: it has its own."""
        defaults = dataclasses.asdict(EnvConfig())
        settings = {name: value for name, value in dataclasses.asdict(self.env).items() if name != "target_macs"}
        if self.evaluator == "table":
            settings = {name: value for name, value in settings.items() if value != defaults[name]}
        return settings

    def identity(self, seed: int, target_macs: float, method: str) -> Row:
        """What makes a run the same run. Files are known by their names."""
        problem: Row = {"network": self.network, "data": Path(self.data).name, "evaluator": self.evaluator}
        problem |= {"weights": self.weights and self.weights.name, **self.settings}
        distillation = dataclasses.asdict(self.distillation)
        del distillation["seed"]
        finalisation = {"finalists": self.finalists, "short_epochs": self.short_epochs, **distillation}
        return {
            "problem": problem,
            "target_macs": target_macs,
            "budget": self.budget,
            "finalisation": finalisation if self.finalise else None,
            "method": method,
            "seed": seed,
        }


def main(config: Config) -> None:
    found = rows.read([config.out]) if config.out.is_dir() else []
    known = {rows.identity(row): row for row in found}
    part, parts = map(int, config.shard.split("/"))
    everything = itertools.product(range(config.seeds), config.target_macs, config.methods)
    # Shifted by one with every seed, so that no part gets the slow methods only.
    mine = [run for number, run in enumerate(everything) if (number + run[0]) % parts == part]
    stages = [config.identity(*run) | stage for run in mine for stage in ({}, {"finalisation": None})]
    kept = [known[key] for key in map(rows.identity, stages) if key in known]
    for row in kept:
        _check_settings(config, row)
    todo = [run for run in mine if rows.identity(config.identity(*run)) not in known]
    digests = {row["weights_fingerprint"] for row in found if "weights_fingerprint" in row and _compares(config, row)}
    if todo and digests:
        _check_weights(config, digests, weights_fingerprint(problem(config, todo[0][1]).model))
    if config.evaluator == "table":
        for target in {run[1] for run in todo}:
            problem(config, target)  # refuses what is not tabulated before the first run
    if todo and config.jobs > 1 and config.weights is None and config.evaluator == "local":
        problem(config, todo[0][1])  # trains the network, if need be, before several processes ask for it
    threads = max(1, torch.get_num_threads() // config.jobs)
    searched = {key: row for key, row in known.items() if "candidates" in row}
    jobs = [(*run, searched.get(rows.identity(config.identity(*run) | {"finalisation": None}))) for run in todo]
    made = results(jobs, partial(_run, config), config.jobs, threads)
    for _, row in tqdm(made, total=len(mine), initial=len(mine) - len(todo), unit="run"):
        rows.append(config.file, row)
        tqdm.write(_told(row))
    print(f"{len(mine)} runs are in {config.out}; python -m benchmarks.compare.report {config.out}")


def _check_settings(config: Config, row: Row) -> None:
    """Raises ValueError for a row whose method is set otherwise today: one name would stand for two methods."""
    before, now = row.get("method_settings", {}), method_settings(row["method"], config.budget)
    if before != now:
        changes = (f"{name} from {was} to {is_now}" for name, was, is_now in differences(before, now))
        raise ValueError(
            f"{config.out} has a row of {row['method']} that was set otherwise (changed since: "
            f"{', '.join(changes) if before else 'not recorded'}); give another --out, or leave it out of --methods"
        )


def _compares(config: Config, row: Row) -> bool:
    """Whether a row, of whatever method, target and seed, is of this command's problem."""
    mine = config.identity(0, config.target_macs[0], config.methods[0])
    return rows.canonical(rows.settings(row)["problem"]) == rows.canonical(rows.settings(mine)["problem"])


def _check_weights(config: Config, before: set[str], now: str) -> None:
    """Raises ValueError where rows are of other weights than those of today: they would not compare."""
    if before != {now}:
        source = config.weights or "a training of its own, which every machine does anew"
        others = ", ".join(sorted(before - {now}))
        raise ValueError(
            f"{config.out} has rows of a {config.network} with other weights (fingerprint {others}) than "
            f"today's ({now}, from {source}); give another --out, or those weights as --weights"
        )


def _told(row: Row) -> str:
    """A line about a run that is finished."""
    found = f"{100 * row['search_accuracy']:.2f} % in the search after {row['evaluations']} plans"
    tested = f", {100 * row['test_accuracy']:.2f} % of the test set" if row["finalisation"] is not None else ""
    return f"{100 * row['target_macs']:g} % of the MACs, seed {row['seed']}, {row['method']}: {found}{tested}"


def run(config: Config, seed: int, target_macs: float, method: str, searched: Row | None = None) -> Row:
    """One search, and what becomes of what it found; `searched` is the row of a search that was made before."""
    env = problem(config, target_macs)  # a fresh one: no run profits from another
    if searched is None:
        result = METHODS[method](env, config.budget, seed)
        if not result.entries:
            raise RuntimeError(f"method {method!r} found no plan within {target_macs} of the MACs; raise the budget")
        searched = _searched(config, env, result) | {"method_settings": method_settings(method, config.budget)}
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
        "full_plan": env.full_plan,
        "original_search_accuracy": env.evaluator.original_accuracy,
        "evaluations": len(result.evaluations),
        "proposals": result.proposals,
        "weights_fingerprint": weights_fingerprint(env.model),
        "optimum": getattr(env.evaluator, "optimum", None),
        "curve": result.curve,
        "search_seconds": None if config.cache else round(result.seconds, 2),  # answers may come from the file
        "search_machine": _machine(config.device),
    }


def _finalised(config: Config, env: FilterPruneEnv, candidates: list[Row], seed: int) -> Row:
    """The best plans of the search, distilled; accuracies by which nothing is chosen are those of the test set."""
    candidate_of = {tuple(candidate["plan"]): candidate for candidate in candidates}
    distillation = dataclasses.replace(config.distillation, seed=seed)
    teacher = _teacher(_Network(weights_fingerprint(env.model), env.model), config.device, seed)
    common: dict[str, Any] = {"teacher": teacher, "device": config.device, "progress": False}
    begin = time.perf_counter()
    finalists = choose(env, list(candidate_of), distillation, short_epochs=config.short_epochs, **common)
    winner, middle = finalists[0], time.perf_counter()
    network = distil_fully(env, winner.plan, distillation, **common)
    end = time.perf_counter()
    return {
        "plan": winner.plan,
        "macs_ratio": candidate_of[winner.plan]["macs_ratio"],
        "rescored_accuracy": winner.recalibrated_accuracy,
        "short_test_accuracy": accuracy(winner.network, env.data, env.data.test, config.device),
        "test_accuracy": accuracy(network, env.data, env.data.test, config.device),
        "original_test_accuracy": accuracy(env.model, env.data, env.data.test, config.device),
        "finalists": [
            {
                "plan": finalist.plan,
                "search_accuracy": candidate_of[finalist.plan]["search_accuracy"],
                "rescored_accuracy": finalist.recalibrated_accuracy,
                "distilled_accuracy": finalist.distilled_accuracy,
            }
            for finalist in finalists
        ],
        "short_seconds": round(middle - begin, 2),
        "full_seconds": round(end - middle, 2),
        "finalise_machine": _machine(config.device),
    }


def problem(config: Config, target_macs: float) -> FilterPruneEnv:
    """A new environment on the data that this process has loaded."""
    common: dict[str, Any] = {"device": config.device, "cache": config.cache, "evaluator": config.evaluator}
    splits = _splits(config.data)
    return make_env(config.network, splits, config.weights, target_macs=target_macs, **common, **config.settings)


def _run(config: Config, arguments: tuple[int, float, str, Row | None]) -> Row:
    return run(config, *arguments)


@lru_cache(maxsize=1)
def _splits(data: str) -> DataSplits:
    return load(data)


@dataclass(frozen=True)
class _Network:
    """The same as another one of the same weights."""

    fingerprint: str
    module: torch.nn.Module = field(compare=False)


@lru_cache(maxsize=1)
def _teacher(network: _Network, device: str, seed: int) -> Teacher:
    """One for all of this process's runs of a seed, which are taught with the same batches."""
    return Teacher(network.module, device)


def _machine(device: str) -> Row:
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
    try:
        main(tyro.cli(Config, prog="python -m benchmarks.compare", description=__doc__))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nInterrupted. Finished runs are kept: the same command goes on.")
