"""A run of QMIX from a network to pruned networks: load, search, distil, report.

All files go to one folder. After Ctrl-C, or even kill -9, a run with `resume` continues from the last checkpoint.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
from torch import nn

from qmix_agent import QMIX, QMIXConfig

from ..common.command import check_writable, require_packages
from ..common.files import replacing
from ..common.onnx_session import PACKAGES
from ..common.settings import Count, Positive, Seed, Settings, Whole
from ..common.stopwatch import Stopwatch
from ..data import DataSplits
from ..deploy.import_network import import_network
from ..deploy.layer_times import LayerTiming, measure_layer_times
from ..deploy.model_library import library_of
from ..deploy.quantise import require_quantiser
from ..finalise import Finaliser, Finalist, accuracy, recalibrated
from ..game.arguments import ProblemArgs
from ..game.config import EnvConfig
from ..game.env import FilterPruneEnv
from ..pruning import Plan
from ..reporting.plots import plot_front
from ..reporting.result import Contestant, add_measurements, network_rows, save_result, search_seconds
from ..reporting.run_folder import check_room, open_folder
from ..reporting.summary import percent, summary
from ..scoring.latency_table import LatencyTable
from ..training.distillation import DistillationConfig, Teacher
from .plans import print_plans, save_plans
from .teacher import TeacherArgs

SUMMARY = "summary.txt"
"""The table of a finished run."""
LATENCY_TABLE = "latency_table.json"
"""The latencies of layers that a run has measured."""
MINUTES = "minutes.json"
"""The minutes of every stage, of all processes of a run together."""
AFTERWARDS = ("distillation", "teacher", "finalists", "short_epochs", "latency.timing")
"""Settings of what follows the search, which may change when a run is resumed."""
FEW_IMAGES = 100
"""Below so many reward images, one of them is more than a point."""
Value = TypeVar("Value")
INTERRUPTED = "Interrupted. Use the same command with --resume to continue from the last checkpoint."


@dataclass(frozen=True)
class RunConfig(Settings):
    """Settings of a run.

    Raises:
        ValueError: A field has a value that is not allowed, or no episode would end with a plan of the budget.
    """

    problem: Annotated[ProblemArgs, tyro.conf.OmitArgPrefixes] = field(default_factory=ProblemArgs)
    """The network, its data, and where plans are evaluated."""
    name: str | None = None
    """Name of the run's folder; by default network, data and a number."""
    out: Path = Path("runs")
    """Folder of all runs."""
    resume: bool = False
    """Resume the run of this name, or the latest unnamed run of this network and data."""
    episodes: Whole = 400
    """Episodes of the search; each ends with one plan. The least-change plan of each budget is evaluated first; with 0
    it is the only one."""
    finalists: Count = 4
    """Number of best plans that get the short distillation."""
    short_epochs: Positive = 1.0
    """Epochs of the short distillation."""
    seed: Seed = 0
    """Seed of the agent."""
    n_envs: Count = 1
    """Episodes played at the same time; as many as there are workers keep all of them busy."""
    env: Annotated[EnvConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=EnvConfig)
    """The game: actions, rewards, and how plans are evaluated."""
    latency: LayerTiming = field(default_factory=LayerTiming)
    """What `target-latency` counts, if there is no `latency-table`, and how the networks of the table are timed."""
    # The game is deterministic, pays at its end, and returns of good plans differ little.
    qmix: QMIXConfig = field(
        default_factory=lambda: QMIXConfig(checkpoint_every=10, eval_episodes=1, standardise_returns=True)
    )
    """The agent: networks, learning, exploration, evaluation and checkpoints."""
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    """The training of the winner and of the uniform network after the search."""
    teacher: TeacherArgs = field(default_factory=TeacherArgs)
    """The network that teaches in this training."""
    quantise: bool = False
    """Also write the winner as an ONNX file in int8, pruned-int8.onnx, and compare all networks in int8. A finished run
    gets it with --resume."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if None in self.env.targets:
            raise ValueError("a run compares networks of equal cost: set target-macs, with reward budget or amc")
        if self.env.max_cycles is not None and self.env.max_cycles < self.env.rounds:
            raise ValueError(f"max-cycles must be at least rounds ({self.env.rounds}), or no episode would finish")
        if not self.episodes and self.env.round_finetune_batches:
            raise ValueError("episodes must be at least 1 with round-finetune-batches: no plan names a network there")

    @property
    def method(self) -> str:
        """Name of the search in tables and plots."""
        return "QMIX" if self.episodes else "least change"


@dataclass(frozen=True)
class Pruning:
    """What the search found for one budget, distilled."""

    env: FilterPruneEnv
    """The game with this budget only."""
    folder: Path
    """Folder of the pruned network."""
    finalists: list[Finalist]
    names: dict[str, str]
    """Names of "original", "uniform" and "pruned" (the winner) in tables."""
    networks: dict[str, tuple[Plan, nn.Module]]
    """Plan and distilled network of the uniform plan and of the winner, by name."""

    def named(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """Return the values of "original", "uniform" and "pruned", given those of all names in tables."""
        return {role: values[name] for role, name in self.names.items()}


def prune(config: RunConfig) -> None:
    """Search, distil the best plans, test them once, and write networks, plots and the summary."""
    require_packages(["matplotlib"], "the plots", "train")
    if config.quantise:
        require_packages(PACKAGES, "ONNX", "export")
        require_quantiser()
    env, directory, stopwatch = start(config)
    with stopwatch.stage("loading and proof"):  # a teacher that does not fit is refused before the search
        teacher = config.teacher.load(env.problem, config.problem.device, config.distillation.precision)
    with stopwatch.stage("search"):
        episodes = search(config, env, directory)
    with stopwatch.stage("distillation"):
        prunings = [
            _distilled(config, env, teacher, target, directory) for target in env.config.targets if target is not None
        ]
    with stopwatch.stage("test"):
        contestants = _tested(config, prunings)
        for pruning in prunings:  # before networks are timed, which takes long for large images
            three, base = pruning.named(contestants), config.problem.base or env.problem.model
            save_result(pruning.folder, pruning.env, three, episodes, config.env.targets, base=base)
    print("Exporting and timing all networks, some seconds for each")
    with stopwatch.stage("export and timing"):
        folders = {pruning.names["pruned"]: pruning.folder for pruning in prunings}
        rows = network_rows(env, list(contestants.values()), folders, config.latency, quantise=config.quantise)
        measured = dict(zip(contestants, rows, strict=True))
        for pruning in prunings:
            add_measurements(pruning.folder, pruning.named(measured))
    if len(prunings) > 1:
        roles = {"uniform L1": "uniform", config.method: "pruned"}
        plot_front(
            directory / "front.png",
            {
                line: [measured["original"], *(measured[pruning.names[role]] for pruning in prunings)]
                for line, role in roles.items()
            },
        )
    print("\nFinalists: % of all reward images as cut (with sampled statistics) and after the short distillation")
    for pruning in prunings:
        print(f"{pruning.names['pruned']}:")
        for one in pruning.finalists:
            print(f"  {100 * one.recalibrated_accuracy:6.2f} {100 * one.distilled_accuracy:6.2f}  {one.plan}")
    text = f"{_heading(env.problem.data)}\n\n{summary(rows)}"
    if env.config.latency_table is not None:
        text += "\n" + _predicted(prunings, LatencyTable.load(env.config.latency_table).measured_on)
    text += f"\nMinutes: {stopwatch}"
    with replacing(directory / SUMMARY) as temporary:
        temporary.write_text(f"{text}\n", encoding="utf-8")
    print(f"\n{text}")
    print(f"\nSearch: {len(env.archive)} plans in {search_seconds(episodes):.0f} s. All files: {directory}")


def only_search(config: RunConfig) -> None:
    """Search, print the best plans, and write all plans."""
    env, directory, stopwatch = start(config)
    with stopwatch.stage("search"):
        episodes = search(config, env, directory)
    save_plans(directory, env)
    print_plans(env, config.finalists)
    print(f"\nSearch: {len(env.archive)} plans in {search_seconds(episodes):.0f} s. All files: {directory}")
    print("The same options with `prune` and --resume distil the best plans.")


def start(config: RunConfig) -> tuple[FilterPruneEnv, Path, Stopwatch]:
    """Load the data, open the run's folder, and make the environment."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "a run is one process: start it without torchrun, and train the pruned network with several processes "
            "afterwards (prune_env.training.distillation.distil)"
        )
    if config.env.cost == "latency" and config.latency.runtime == "onnxruntime" and config.env.latency_table is None:
        require_packages(PACKAGES, "a latency table of onnxruntime", "export")
    check_writable("out", config.out, folder=True)
    stopwatch = Stopwatch()
    with stopwatch.stage("loading and proof"):
        if ".py:" in config.problem.network:
            import_network(config.problem.network)  # before all images are read, for nothing if it is misspelt
        data = config.problem.load_data()
        print(f"Data {data.summary}")
        directory = _open_folder(config, data)
        print(f"Writing to {directory}")
        stopwatch.keep(directory / MINUTES)
        try:
            env = _make_env(config, data, directory)
        except Exception:  # after Ctrl-C, --resume continues
            if not config.resume:  # nothing was found yet, and --resume must not take this for a run
                shutil.rmtree(directory)
            raise
        print(
            f"Original network: {percent(env.evaluator.original_accuracy, 2)} of the reward images{_untrained(config)}"
        )
    print(f"Budget: {' and '.join(f'{100 * one:g} %' for one in config.env.targets if one)} of the {env.budget.unit}")
    if (images := min(len(data.reward), config.env.reward_images)) < FEW_IMAGES:
        print(
            f"Note: plans are compared on {images} reward images, which can hardly tell them apart. Give "
            "more images; with folders train, val and test, val is the reward split"
        )
    if 0 < config.episodes <= config.qmix.learning_starts:
        print(
            f"Note: {config.episodes} episodes end before learning starts, so their plans are random; "
            f"--qmix.learning-starts is {config.qmix.learning_starts}"
        )
    return env, directory, stopwatch


def _open_folder(config: RunConfig, data: DataSplits) -> Path:
    """Make the run's folder, or open that of the run to resume."""
    settings = asdict(replace(config, resume=False, name=None))
    for name in ("out", "quantise"):  # the folder of a run may be moved, and int8 files be added
        del settings[name]
    settings["normalisation"] = {"mean": data.mean, "std": data.std}
    stem = f"{config.problem.title}-{data.name}"
    return open_folder(config.out, config.name, stem, settings, config.resume, AFTERWARDS)


def _untrained(config: RunConfig) -> str:
    """Return a hint if a network of the user's own got no weights."""
    if config.problem.weights is not None or ":" not in config.problem.network or library_of(config.problem.network):
        return ""
    return f" with the weights that {config.problem.network} gives it; --weights sets others"


def _make_env(config: RunConfig, data: DataSplits, directory: Path) -> FilterPruneEnv:
    """Make the environment. For a budget of latency without a table, measure one, once."""
    if config.env.cost != "latency" or config.env.latency_table is not None or config.problem.tabulated:
        return config.problem.make_env(config.env, data)
    problem, file = config.problem.make_problem(config.env, data), directory / LATENCY_TABLE
    if not file.is_file():
        table = measure_layer_times(problem.model, problem.groups, data.example_input, config.latency)
        table.save(file)
        print(f"Measured the latencies of all layers: {table.measured_on}")
    return FilterPruneEnv(problem, replace(config.env, latency_table=file), resources=config.problem)


def search(config: RunConfig, env: FilterPruneEnv, directory: Path) -> list[dict[str, Any]]:
    """Play QMIX, and return the rows of metrics.jsonl. The environment's archive keeps every finished plan."""
    checkpoints = directory / "checkpoint"
    agent = QMIX.load_or_new(checkpoints, env, config.qmix, config.seed, config.problem.device)
    agent_bytes = agent.checkpoint_bytes(config.episodes, config.env.rounds) * (config.qmix.keep_checkpoints + 2)
    check_room(directory, env, config.finalists, agent_bytes)
    _play_least_change_plans(env)
    rows: list[dict[str, Any]] = []
    if config.episodes:
        agent.learn(config.episodes, directory, checkpoints, n_envs=config.n_envs)
        rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    env.close()
    return rows


def _play_least_change_plans(env: FilterPruneEnv) -> None:
    """Let the search begin with one plan for each budget that needs no search."""
    if not _has_rule(env):
        return
    for target in env.config.targets:
        if target is not None and (plan := env.least_change.plan(target)) not in env.archive:
            env.play(plan, target)


def _has_rule(env: FilterPruneEnv) -> bool:
    """Return whether least-change plans are part of a search: with finetuning in every round, plans name no network."""
    return not env.config.round_finetune_batches


def _distilled(config: RunConfig, env: FilterPruneEnv, teacher: Teacher, target: float, directory: Path) -> Pruning:
    """Choose and distil the network of a budget without looking at the test set. The uniform plan is trained alike."""
    game = env.clone(target=target)
    finaliser = Finaliser(
        game,
        config.distillation,
        short_epochs=config.short_epochs,
        teacher=teacher,
        checkpoints=directory / "checkpoint",
        device=config.problem.device,
    )
    finalists = finaliser.rank([entry.plan for entry in env.archive.best(config.finalists, target=target)])
    single = len(env.config.targets) == 1
    suffix = "" if single else f" {100 * target:g} %"
    method = config.method
    if config.episodes and _has_rule(env) and finalists[0].plan == env.least_change.plan(target):
        method = "QMIX = least change"
    names = {"original": "original", "uniform": f"uniform L1{suffix}", "pruned": method + suffix}
    plans = {names["uniform"]: game.budget.uniform(), names["pruned"]: finalists[0].plan}
    networks = {name: (plan, finaliser.distil(plan, title=name)) for name, plan in plans.items()}
    folder = directory if single else directory / f"{env.config.cost}-{target:g}"
    return Pruning(game, folder, finalists, names, networks)


def _tested(config: RunConfig, prunings: list[Pruning]) -> dict[str, Contestant]:
    """Read the test set, once. Return all networks by name, the original one first."""
    problem = prunings[0].env.problem

    def test(network: nn.Module) -> float:
        return accuracy(network, problem.data, problem.data.test, device=config.problem.device)

    contestants = [Contestant("original", problem.model, problem.full_plan, test(problem.model))]
    for pruning in prunings:
        for name, (plan, network) in pruning.networks.items():
            before = test(recalibrated(pruning.env, plan))
            contestants.append(Contestant(name, network, plan, test(network), before))
    return {one.name: one for one in contestants}


def _predicted(prunings: list[Pruning], measured_on: str) -> str:
    """Return a line with the latencies that the table predicts, to compare with the measured ones."""
    shares = [
        f"{name} {percent(pruning.env.budget.ratio(plan), 1)}"
        for pruning in prunings
        for name, (plan, _) in pruning.networks.items()
    ]
    return f"Predicted latency, share of the original ({measured_on or 'latency table'}): {', '.join(shares)}"


def _heading(data: DataSplits) -> str:
    return f"Test accuracy on {data.name}, {len(data.test)} images: one image is {100 / len(data.test):.2f} points"
