"""Prune a network with QMIX: load, search, distil, report.

    python examples/train_qmix.py                                            # digits: about 80 seconds on 2 cores
    python examples/train_qmix.py --network vgg16 --data cifar10 --target-macs 0.4
    python examples/train_qmix.py --target-macs 0.3 0.5 0.7                  # one search, a network for each budget

All files go to runs/<name>/. After Ctrl-C, or even kill -9, --resume continues from the last checkpoint.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from torch import nn

from prune_env import EnvConfig, FilterPruneEnv
from prune_env.common.command import check_writable, one_line_errors, require_packages
from prune_env.common.settings import Count, Positive, Seed, Settings
from prune_env.finalise import Finaliser, Finalist, accuracy, recalibrated
from prune_env.game.arguments import ProblemArgs
from prune_env.pruning import Plan
from prune_env.reporting.plots import plot_front
from prune_env.reporting.result import Contestant, network_rows, save_result, search_seconds
from prune_env.reporting.run_folder import check_room, open_folder
from prune_env.reporting.summary import summary
from prune_env.training.distillation import DistillationConfig
from qmix_agent import QMIX, QMIXConfig


@dataclass(frozen=True)
class Config(Settings):
    problem: Annotated[ProblemArgs, tyro.conf.OmitArgPrefixes] = field(default_factory=ProblemArgs)
    """The network, its data, and where plans are evaluated."""
    name: str | None = None
    """Name of the run's folder; by default network, data and a number."""
    out: Path = Path("runs")
    """Folder of all runs."""
    resume: bool = False
    """Resume the run of this name, or the latest unnamed run of this network and data."""
    episodes: Count = 400
    """Episodes of the search; each ends with one plan."""
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
    # The game is deterministic, pays at its end, and returns of good plans differ little.
    qmix: QMIXConfig = field(
        default_factory=lambda: QMIXConfig(checkpoint_every=10, eval_episodes=1, standardise_returns=True)
    )
    """The agent: networks, learning, exploration, evaluation and checkpoints."""
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    """The training of the winner and of the uniform network after the search."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.env.target_macs is None:
            raise ValueError("this script compares networks of equal cost: set target-macs, with reward budget or amc")
        if self.env.max_cycles is not None and self.env.max_cycles < self.env.rounds:
            raise ValueError(f"max-cycles must be at least rounds ({self.env.rounds}), or no episode would finish")


@dataclass(frozen=True)
class Pruning:
    """What the search found for one budget, distilled."""

    env: FilterPruneEnv
    """The game with this budget only."""
    folder: Path
    """Folder of the pruned network."""
    suffix: str
    """End of the networks' names: the budget, if there are several."""
    finalists: list[Finalist]
    networks: dict[str, tuple[Plan, nn.Module]]
    """Plan and distilled network of "uniform L1" and "QMIX"."""


def main(config: Config) -> None:
    require_packages(["matplotlib"], "the plots", "train")
    check_writable("out", config.out, folder=True)
    data = config.problem.load_data()
    print(f"Data {data.summary}")
    settings = dataclasses.asdict(replace(config, resume=False, name=None))
    del settings["out"]  # the folder of a run may be moved
    settings["normalisation"] = {"mean": data.mean, "std": data.std}
    stem = f"{config.problem.network}-{data.name}"
    directory = open_folder(config.out, config.name, stem, settings, config.resume)
    print(f"Writing to {directory}")
    env = config.problem.make_env(config.env, data)
    problem = env.problem
    episodes = search(config, env, directory)
    prunings = [prune(config, env, target, directory) for target in env.config.targets if target is not None]

    # The test set, once.
    def test(network: nn.Module) -> float:
        return accuracy(network, data, data.test, device=config.problem.device)

    contestants = [Contestant("original", problem.model, problem.full_plan, test(problem.model))]
    for pruning in prunings:
        for name, (plan, network) in pruning.networks.items():
            before = test(recalibrated(env, plan))
            contestants.append(Contestant(name + pruning.suffix, network, plan, test(network), before))
        three = [contestants[0], *contestants[-2:]]
        save_result(pruning.folder, pruning.env, three, episodes, env.config.targets, base=config.problem.network)
    if rounded := config.env.round_to != 1:  # for latencies: the same budgets without rounding, without distillation
        for pruning in prunings:
            budget = pruning.env.budget
            plan = replace(budget, limits=replace(budget.limits, round_to=1)).uniform()
            contestants.append(Contestant(f"L1, unrounded{pruning.suffix}", recalibrated(env, plan), plan))
    rows = network_rows(env, contestants, {f"QMIX{pruning.suffix}": pruning.folder for pruning in prunings})
    if len(prunings) > 1:
        lines = {name: [0, *range(start, 2 * len(prunings) + 1, 2)] for name, start in (("uniform L1", 1), ("QMIX", 2))}
        plot_front(directory / "front.png", {name: [rows[one] for one in line] for name, line in lines.items()})
    print("\nFinalists: % of all reward images as cut (with sampled statistics) and after the short distillation")
    for one in itertools.chain(*(pruning.finalists for pruning in prunings)):
        print(f"  {100 * one.recalibrated_accuracy:6.2f} {100 * one.distilled_accuracy:6.2f}  {one.plan}")
    print(f"\nTest accuracy on {data.name}, {len(data.test)} images: one image is {100 / len(data.test):.2f} points\n")
    print(summary(rows))
    if rounded:
        print("L1, unrounded: the uniform plan of the same budget with round-to 1, to compare latencies")
    print(f"\nSearch: {len(env.archive)} plans in {search_seconds(episodes):.0f} s. All files: {directory}")


def search(config: Config, env: FilterPruneEnv, directory: Path) -> list[dict[str, Any]]:
    """Play QMIX, and return the rows of metrics.jsonl. The environment's archive keeps every finished plan."""
    checkpoints = directory / "checkpoint"
    agent = QMIX.load_or_new(checkpoints, env, config.qmix, config.seed, config.problem.device)
    agent_bytes = agent.checkpoint_bytes(config.episodes, config.env.rounds) * (config.qmix.keep_checkpoints + 2)
    check_room(directory, env, config.finalists, agent_bytes)
    agent.learn(config.episodes, directory, checkpoints, n_envs=config.n_envs)
    env.close()
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def prune(config: Config, env: FilterPruneEnv, target: float, directory: Path) -> Pruning:
    """Choose and distil the network of a budget without looking at the test set. The uniform plan is trained alike."""
    game = env.clone(target_macs=target)
    finaliser = Finaliser(
        game,
        config.distillation,
        short_epochs=config.short_epochs,
        checkpoints=directory / "checkpoint",
        device=config.problem.device,
    )
    finalists = finaliser.rank([entry.plan for entry in env.archive.best(config.finalists, target_macs=target)])
    plans = {"uniform L1": game.budget.uniform(), "QMIX": finalists[0].plan}
    single = len(env.config.targets) == 1
    suffix = "" if single else f" {100 * target:g} %"
    networks = {name: (plan, finaliser.distil(plan, title=name + suffix)) for name, plan in plans.items()}
    return Pruning(game, directory if single else directory / f"macs-{target:g}", suffix, finalists, networks)


if __name__ == "__main__":
    with one_line_errors("Interrupted. Use the same command with --resume to continue from the last checkpoint."):
        main(tyro.cli(Config, description=__doc__))
