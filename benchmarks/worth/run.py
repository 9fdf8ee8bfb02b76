"""Measure what pruned networks are worth after trainings of several lengths.

    python -m benchmarks.worth --network resnet20 --data cifar10 --weights FILE --target-macs 0.5 0.3 \
        --epochs 2 10 30 --found benchmarks/results/resnet20-distilled.jsonl --random 30 --seeds 3

Every network is distilled for each number of epochs with each seed, the shortest first, all by the same recipe. The
weights at the end count; no accuracy chooses anything. Before that, everything is measured that a search could measure.
One row per training is appended to rows.jsonl in `out`, one per network to signals.jsonl. Finished trainings are
skipped; an interrupted one resumes. `benchmarks.worth.report` makes tables and pictures.
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

import tyro
from torch import nn
from tqdm import tqdm

from prune_env import EnvConfig, FilterPruneEnv, save_pruned
from prune_env.commands.teacher import TeacherArgs
from prune_env.common.command import check_writable, one_line_errors, require_packages
from prune_env.common.fingerprints import weights_fingerprint
from prune_env.common.settings import Count, Positive, Settings, Whole
from prune_env.finalise import recalibrated
from prune_env.game.arguments import ProblemArgs
from prune_env.scoring.metric import accuracy
from prune_env.training.config import RunOptions
from prune_env.training.distillation import DistillationConfig, Teacher, distil

from ..compare import rows
from ..compare.jobs import results
from ..compare.rows import Row
from ..compare.run import machine
from .networks import SOURCES, candidates, network_key
from .recipe import RECIPE
from .rivals import RIVALS, Rival, filters, macs_ratio
from .signals import SIGNALS, measure

ENTRIES = {"macs_ratio", "filters", "groups", "full_plan", *SIGNALS} - {"output_change"}
"""Entries of every row of signals. Networks of other packages have no predicted change of the outputs."""


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
    """Networks of one source and budget, the first ones."""
    epochs: tuple[Positive, ...] = (2.0, 10.0)
    """Lengths of the training."""
    seeds: Count = 3
    """Trainings of each network and length."""
    teacher: TeacherArgs = field(default_factory=TeacherArgs)
    """The network that teaches."""
    distillation: DistillationConfig = RECIPE
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
            raise ValueError("target-macs must be set: networks are compared at equal budgets of MACs")
        if unknown := set(self.sources) - set(SOURCES):
            raise ValueError(f"sources: {min(unknown)!r} is unknown; choose among {', '.join(SOURCES)}")
        for name in ("epochs", "seed", "min_steps", "select_best"):
            if (given := getattr(self.distillation, name)) != getattr(RECIPE, name):
                raise ValueError(
                    f"distillation.{name}={given!r} has no place here: every network is trained for the "
                    "same --epochs with the same --seeds, and its last weights count; leave it out"
                )


def main(config: Config) -> None:
    if not config.sources or set(config.sources) & set(RIVALS):
        require_packages(["torch_pruning", "modelopt", "torchprofile"], "the rivals", "benchmarks")
    check_writable("out", config.out, folder=True)
    file, found = config.out / "rows.jsonl", rows.read(config.found)
    recipe = asdict(config.distillation) | {
        "teacher": config.teacher.network or "itself",
        "teacher_fingerprint": _teacher(config, 0).fingerprint,
    }
    del recipe["epochs"], recipe["seed"]
    networks = _measured(config, found)
    done = {_key(row) for row in rows.read_file(file)}
    every = [
        row | {"epochs": epochs, "seed": seed, "recipe": recipe}
        for epochs, seed, row in itertools.product(sorted(set(config.epochs)), range(config.seeds), networks)
    ]
    todo = [row for row in every if _key(row) not in done]
    made = results(todo, partial(_run, config), config.jobs)
    for row, result in tqdm(made, total=len(every), initial=len(every) - len(todo), unit="run"):
        rows.append(file, row | result)
        tqdm.write(
            f"{', '.join(row['sources'])}, {100 * row['target_macs']:g} % of the MACs, {row['epochs']:g} epochs, seed "
            f"{row['seed']}: {100 * result['test_accuracy']:.2f} % of the test set"
        )


def _measured(config: Config, found: list[Row]) -> list[Row]:
    """Return a row for every network, after everything that can be known before training is in signals.jsonl."""
    file, env = config.out / "signals.jsonl", _env(config.problem, config.env)
    targets = [target for target in config.env.targets if target is not None]
    networks = [row for target in targets for row in _networks(config, env, target, found)]
    # Rows of older versions lack some entries; they are measured again, and the last row of a network counts.
    known = {network_key(row): row for row in rows.read_file(file) if set(row) >= ENTRIES}
    for row in tqdm([row for row in networks if network_key(row) not in known], desc="signals", unit="network"):
        known[network_key(row)] = row | _signals(env, row)
        rows.append(file, known[network_key(row)])
    return [row | {"filters": known[network_key(row)]["filters"]} for row in networks]


def _networks(config: Config, env: FilterPruneEnv, target: float, found: list[Row]) -> list[Row]:
    """Return a row for every network of a budget that is measured."""
    every = candidates(env, target, config.random, found)
    names = config.sources or tuple(dict.fromkeys(source for one in every for source in one.sources))
    if missing := [name for name in names if not any(name in one.sources for one in every)]:
        raise ValueError(
            f"there is no network of {missing[0]!r} for {target:g} of the MACs; choose among "
            f"{', '.join(dict.fromkeys(source for one in every for source in one.sources))}"
        )
    chosen = [[one for one in every if name in one.sources][: config.plans_per_source] for name in names]
    problem = rows.problem_of(config.problem, config.env)
    problem.pop("target_macs", None)
    common = {"problem": problem, "weights_fingerprint": weights_fingerprint(env.problem.model), "target_macs": target}
    return [common | one._asdict() for one in dict.fromkeys(itertools.chain.from_iterable(chosen))]


def _signals(env: FilterPruneEnv, row: Row) -> Row:
    """Return what can be known of a network before it is trained."""
    start = time.perf_counter()
    network = _network(env, row)
    found = {"macs_ratio": macs_ratio(env, network), "filters": filters(network)}
    found |= {"groups": [group.name for group in env.problem.groups], "full_plan": list(env.problem.full_plan)}
    if row["plan"] is None:
        found["evaluations"] = _rival(env, row["sources"][0], row["target_macs"]).evaluations
    else:
        found["output_change"] = env.least_change.change(row["plan"])
    return found | {"seconds": round(time.perf_counter() - start, 1)} | measure(env, network)


def _network(env: FilterPruneEnv, row: Row) -> nn.Module:
    """Return a pruned network with recalibrated BatchNorm, on the CPU.

    Raises:
        ValueError: It costs more than the budget, or a rival's network is not that of the earlier rows.
    """
    if row["plan"] is not None:
        return recalibrated(env, tuple(row["plan"]))
    name, target = row["sources"][0], row["target_macs"]
    network = copy.deepcopy(_rival(env, name, target).network)
    if (cost := macs_ratio(env, network)) > target:
        raise ValueError(
            f"the network of {name} has {cost:.4f} of the MACs, more than {target:g}; drop it from sources"
        )
    if row.get("filters", filters(network)) != filters(network):
        raise ValueError(
            f"the network of {name} is another one now ({filters(network)}) than in signals.jsonl ({row['filters']}); "
            "give another --out"
        )
    env.evaluator.recalibrate(network)
    return network.cpu().eval()


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
    network, teacher = _network(env, row), _teacher(config, row["seed"])
    start = time.perf_counter()
    run = RunOptions(device, checkpoint, progress=False, title=row["sources"][0])
    network = distil(network, teacher, data, settings, loss=problem.loss, run=run)
    result = {
        "seconds": round(time.perf_counter() - start, 1),
        "machine": machine(device),
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
def _teacher(config: Config, seed: int) -> Teacher:
    """Return one teacher for all runs of a seed in this process, which train on the same batches."""
    problem = _env(config.problem, config.env).problem
    return config.teacher.load(problem, config.problem.device, config.distillation.precision)


def _key(row: Row) -> str:
    """Return a text that is equal for rows of the same training."""
    return rows.canonical([network_key(row), row["epochs"], row["seed"], row["recipe"]])


def command() -> None:
    """Run the command line."""
    with one_line_errors("Interrupted. Finished runs are kept; the same command resumes."):
        main(tyro.cli(Config, prog="python -m benchmarks.worth", description=__doc__))
