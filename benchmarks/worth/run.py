"""Measure what pruned networks are worth after trainings of several lengths.

    python -m benchmarks.worth --network resnet20 --data cifar10 --weights FILE --target-macs 0.5 0.3 \
        --epochs 2 10 30 --found benchmarks/results/resnet20-distilled.jsonl --random 30 --seeds 3

Every network is distilled for each number of epochs with each seed, the shortest first, all by the same recipe. The
weights at the end count; no accuracy chooses anything. Before that, everything is measured that a search could measure.
One row per training is appended to rows.jsonl in `out`, one per network to signals.jsonl. Finished trainings are
skipped; an interrupted one resumes. `benchmarks.worth.report` makes tables and a picture.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import time
from dataclasses import asdict, dataclass, field, replace
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Annotated

import torch
import tyro
from tqdm import tqdm

from prune_env import EnvConfig, FilterPruneEnv, save_pruned
from prune_env.common.command import check_writable, one_line_errors, require_packages
from prune_env.common.fingerprints import weights_fingerprint
from prune_env.common.settings import Count, Positive, Settings, Whole
from prune_env.finalise import recalibrated
from prune_env.game.arguments import ProblemArgs
from prune_env.pruning import Plan
from prune_env.scoring.metric import accuracy
from prune_env.training.config import RunOptions
from prune_env.training.distillation import DistillationConfig, Teacher, distil
from prune_env.training.pretrained import check_names, pretrained

from ..compare import rows
from ..compare.jobs import results
from ..compare.rows import Row
from .networks import SOURCES, Candidate, candidates
from .rivals import RIVALS, Rival, filters, macs_ratio
from .signals import signals


@dataclass(frozen=True)
class Config(Settings):
    problem: Annotated[ProblemArgs, tyro.conf.OmitArgPrefixes] = field(default_factory=ProblemArgs)
    """The network and its data."""
    env: Annotated[EnvConfig, tyro.conf.OmitArgPrefixes] = field(
        default_factory=lambda: EnvConfig(target_macs=(0.5, 0.3), round_to=1, linear=False)
    )
    """The budgets, and how plans are evaluated as cut."""
    found: tuple[Path, ...] = ()
    """Files or folders of benchmarks.compare whose winners are measured."""
    random: Whole = 0
    """Plans of each budget that are drawn at random."""
    sources: tuple[str, ...] = ()
    """Measure only networks of these rules, methods and rivals; by default all."""
    plans_per_source: Count = 100
    """Plans of one source and budget, the first ones."""
    epochs: tuple[Positive, ...] = (2.0, 10.0)
    """Lengths of the training."""
    seeds: Count = 3
    """Trainings of each network and length."""
    teacher: str | None = None
    """Registered network that teaches instead of the original network."""
    teacher_weights: Path | None = None
    """Its trained weights."""
    distillation: DistillationConfig = field(default_factory=lambda: DistillationConfig(min_steps=0, select_best=False))
    """The recipe. Epochs and seed are those of the run."""
    keep: bool = False
    """Keep the trained networks of plans, in networks/ of `out`."""
    jobs: Count = 1
    """Number of processes, each with one thread."""
    out: Path = Path("runs/worth")
    """Folder of the results."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if None in self.env.targets or self.env.cost != "macs":
            raise ValueError("target-macs must be set: plans are compared at equal MACs")
        if unknown := set(self.sources) - set(SOURCES):
            raise ValueError(f"sources: {min(unknown)!r} is unknown; choose among {', '.join(SOURCES)}")
        if self.teacher is not None:
            check_names(self.teacher, self.teacher_weights)
        elif self.teacher_weights is not None:
            raise ValueError("teacher-weights need the name of the network: give teacher, too")


def main(config: Config) -> None:
    if not config.sources or set(config.sources) & set(RIVALS):
        require_packages(["torch_pruning", "modelopt", "torchprofile"], "the rivals", "benchmarks")
    check_writable("out", config.out, folder=True)
    file, signals_file = config.out / "rows.jsonl", config.out / "signals.jsonl"
    env = _env(config.problem, config.env)
    weights = weights_fingerprint(env.problem.model)
    common = {"problem": rows.problem_of(config.problem, config.env), "weights_fingerprint": weights}
    del common["problem"]["target_macs"]
    recipe = asdict(replace(config.distillation, seed=0)) | {"teacher": config.teacher or "itself"}
    del recipe["epochs"], recipe["seed"]
    networks = [
        {**common, "target_macs": target, "source": source, "plan": plan}
        for target in config.env.targets
        for source, plan in _chosen(config, env, target)
    ]
    done = {_key(row) for row in rows.read_file(signals_file)}
    for row in tqdm([row for row in networks if _key(row) not in done], desc="signals", unit="network"):
        rows.append(signals_file, row | _signals(env, row))
    done = {_key(row) for row in rows.read_file(file)}
    every = [
        row | {"epochs": epochs, "seed": seed, "recipe": recipe}
        for epochs, seed, row in itertools.product(sorted(config.epochs), range(config.seeds), networks)
    ]
    todo = [row for row in every if _key(row) not in done]
    made = results(todo, partial(_run, config), config.jobs)
    for row, result in tqdm(made, total=len(every), initial=len(every) - len(todo), unit="run"):
        rows.append(file, row | result)
        tqdm.write(
            f"{row['source']}, {100 * row['target_macs']:g} % of the MACs, {row['epochs']:g} epochs, seed "
            f"{row['seed']}: {100 * result['test_accuracy']:.2f} % of the test set"
        )


def _chosen(config: Config, env: FilterPruneEnv, target: float) -> list[Candidate]:
    """Return the networks of a budget that are measured."""
    every = candidates(env, target, config.random, rows.read(config.found))
    names = config.sources or dict.fromkeys(candidate.source for candidate in every)
    by_source = {name: [candidate for candidate in every if candidate.source == name] for name in names}
    if missing := [name for name, found in by_source.items() if not found]:
        raise ValueError(
            f"there is no network of {missing[0]!r} for {target:g} of the MACs; choose among "
            f"{', '.join(dict.fromkeys(candidate.source for candidate in every))}"
        )
    return [candidate for found in by_source.values() for candidate in found[: config.plans_per_source]]


def _signals(env: FilterPruneEnv, row: Row) -> Row:
    """Return what can be known of a network before it is trained."""
    start = time.perf_counter()
    network, evaluations = _network(env, row["source"], row["target_macs"], row["plan"])
    known = {"macs_ratio": macs_ratio(env, network), "filters": filters(network), "evaluations": evaluations}
    return known | {"seconds": round(time.perf_counter() - start, 1)} | signals(env, network)


def _network(env: FilterPruneEnv, source: str, target: float, plan: Plan | None) -> Rival:
    """Return a pruned network with recalibrated BatchNorm, and how often an accuracy was looked at to find it.

    Evaluations are known of rivals only; rows of benchmarks.compare have those of their searches.
    """
    if plan is not None:
        return Rival(recalibrated(env, tuple(plan)), None)
    network, evaluations = _rival(env, source, target)
    network = copy.deepcopy(network)
    env.evaluator.recalibrate(network)
    return Rival(network.cpu().eval(), evaluations)


@cache
def _rival(env: FilterPruneEnv, name: str, target: float) -> Rival:
    """Return a rival's network; a search is made once in a process."""
    return RIVALS[name](env, target)


def _run(config: Config, row: Row) -> Row:
    """Distil a network and return its accuracies."""
    env = _env(config.problem, config.env)
    problem, data, device = env.problem, env.problem.data, config.problem.device
    name = hashlib.blake2b(_key(row).encode(), digest_size=8).hexdigest()
    checkpoint = config.out / "checkpoints" / f"{name}.pt"
    settings = replace(config.distillation, epochs=row["epochs"], seed=row["seed"])
    teacher = _teacher(config.problem, config.env, config.teacher, config.teacher_weights, row["seed"])
    network, _ = _network(env, row["source"], row["target_macs"], row["plan"])
    start = time.perf_counter()
    run = RunOptions(device, checkpoint, progress=False, title=row["source"])
    network = distil(network, teacher, data, settings, loss=problem.loss, run=run)
    result = {
        "seconds": round(time.perf_counter() - start, 1),
        "threads": torch.get_num_threads(),
        "reward_accuracy": accuracy(network, data, data.reward, problem.metric, device),
        "test_accuracy": accuracy(network, data, data.test, problem.metric, device),
    }
    if config.keep and row["plan"] is not None:
        numbers = {"test_accuracy": result["test_accuracy"], "epochs": row["epochs"], "seed": row["seed"]}
        folder = config.out / "networks" / name
        save_pruned(folder, network, tuple(row["plan"]), problem, base=config.problem.base, metrics=numbers)
        result["network"] = name
    checkpoint.unlink(missing_ok=True)
    return result


@lru_cache(maxsize=1)
def _env(problem: ProblemArgs, settings: EnvConfig) -> FilterPruneEnv:
    """Return the environment that all runs of a process share."""
    return problem.make_env(settings)


@lru_cache(maxsize=1)
def _teacher(args: ProblemArgs, settings: EnvConfig, network: str | None, weights: Path | None, seed: int) -> Teacher:
    """Return one teacher for all runs of a seed in this process, which train on the same batches."""
    problem = _env(args, settings).problem
    model = problem.model if network is None else pretrained(network, problem.data, weights, device=args.device)
    return Teacher(model, args.device)


def _key(row: Row) -> str:
    """Return a text that is equal for rows of the same training or network. Where a plan comes from does not count."""
    names = ("problem", "weights_fingerprint", "target_macs", "plan", "epochs", "seed", "recipe")
    return rows.canonical([row["source"] if row["plan"] is None else None, *(row.get(name) for name in names)])


def command() -> None:
    """Run the command line."""
    with one_line_errors("Interrupted. Finished runs are kept; the same command resumes."):
        main(tyro.cli(Config, prog="python -m benchmarks.worth", description=__doc__))
