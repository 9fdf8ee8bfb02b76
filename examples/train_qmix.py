"""Prune a network with QMIX: load, search, distil, report.

    python examples/train_qmix.py                                            # digits: about 80 seconds on 2 cores
    python examples/train_qmix.py --network vgg16 --data cifar10 --target-macs 0.4

All files go to runs/<name>/. After Ctrl-C, or even kill -9, --resume continues from the last checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from prune_env import EnvConfig, save_pruned
from prune_env.common.command import check_writable, one_line_errors, require_packages
from prune_env.common.settings import Count, Positive, Seed, Settings
from prune_env.finalise import Finaliser, accuracy, recalibrated
from prune_env.game.arguments import ProblemArgs
from prune_env.reporting.run_folder import Contestant, network_rows, open_folder, save_plots
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
    """Resume the run of this name, or the latest run of this network and data."""
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


def main(config: Config) -> None:
    device = config.problem.device
    require_packages(["matplotlib"], "the plots", "train")
    check_writable("out", config.out, folder=True)
    data = config.problem.load_data()
    print(f"Data {data.summary}")
    settings = dataclasses.asdict(replace(config, resume=False, name=None))
    settings["normalisation"] = {"mean": data.mean, "std": data.std}
    stem = f"{config.problem.network}-{data.name}"
    directory = open_folder(config.out, config.name, stem, settings, config.resume)
    print(f"Writing to {directory}")
    env = config.problem.make_env(config.env, data)
    problem = env.problem

    # Search: QMIX plays, and the environment's archive keeps every finished plan.
    checkpoints = directory / "checkpoint"
    if config.resume and QMIX.checkpoint_exists(checkpoints):
        agent = QMIX.load(checkpoints, env, device=device)
    else:
        agent = QMIX(env, config.qmix, seed=config.seed, device=device)
    agent.learn(config.episodes, directory, checkpoints, n_envs=config.n_envs)
    env.close()
    episodes = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]

    # From plans to a network, without looking at the test set. The uniform plan gets the same distillation.
    finaliser = Finaliser(
        env, config.distillation, short_epochs=config.short_epochs, checkpoints=checkpoints, device=device
    )
    finalists = finaliser.rank([entry.plan for entry in env.archive.best(config.finalists)])
    plans = {"uniform L1": env.budget.uniform(), "QMIX": finalists[0].plan}
    networks = {name: finaliser.distil(plan, title=name) for name, plan in plans.items()}

    # The test set, once.
    contestants = [
        Contestant(
            "original", problem.model, problem.full_plan, accuracy(problem.model, data, data.test, device=device)
        )
    ]
    for name, plan in plans.items():
        after = accuracy(networks[name], data, data.test, device=device)
        before = accuracy(recalibrated(env, plan), data, data.test, device=device)
        contestants.append(Contestant(name, networks[name], plan, after, before))
    original, uniform, winner = contestants
    metrics = {
        "original_accuracy": original.accuracy,
        "pruned_accuracy": winner.accuracy,
        "uniform_accuracy": uniform.accuracy,
        "pruned_accuracy_before_distillation": winner.accuracy_before,
        "uniform_accuracy_before_distillation": uniform.accuracy_before,
        **dict(zip(("macs_ratio", "params_ratio"), env.cost_ratios(winner.plan), strict=True)),
        "evaluated_plans": len(env.archive),
        "search_seconds": sum(row.get("seconds", 0.0) for row in episodes),
    }
    save_pruned(directory, winner.network, winner.plan, problem, base=config.problem.network, metrics=metrics)
    if config.env.round_to > 1:  # for latencies: the same budget without rounding, without distillation
        plan = replace(env.budget, round_to=1).uniform()
        contestants.append(Contestant("L1, unrounded", recalibrated(env, plan), plan))
    rows = network_rows(directory, env, contestants, winner="QMIX")
    save_plots(directory, env, episodes, uniform.plan, winner.plan)
    print("\nFinalists: % of all reward images as cut (with sampled statistics) and after the short distillation")
    for one in finalists:
        print(f"  {100 * one.recalibrated_accuracy:6.2f} {100 * one.distilled_accuracy:6.2f}  {one.plan}")
    print(f"\nTest accuracy on {data.name}, {len(data.test)} images: one image is {100 / len(data.test):.2f} points\n")
    print(summary(rows))
    if config.env.round_to > 1:
        print("L1, unrounded: the uniform plan of the same budget with round-to 1, to compare latencies")
    print(f"\nSearch: {metrics['evaluated_plans']} plans in {metrics['search_seconds']:.0f} s. All files: {directory}")


if __name__ == "__main__":
    with one_line_errors("Interrupted. Use the same command with --resume to continue from the last checkpoint."):
        main(tyro.cli(Config, description=__doc__))
