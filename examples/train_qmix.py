"""Prune a network with QMIX: load, search, distil, report.

    python examples/train_qmix.py                                            # digits: about 80 seconds on 2 cores
    python examples/train_qmix.py --network vgg16 --data cifar10 --target-macs 0.4

Everything goes to runs/<name>/. Ctrl-C and even kill -9 cost the episodes since the last checkpoint: --resume goes on.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from prune_env import EnvConfig, FilterPruneEnv, save_pruned
from prune_env.common.device import check_device
from prune_env.data import load
from prune_env.finalise import accuracy, choose, distil_fully, recalibrated
from prune_env.pruning.problem import ProblemConfig, PruningProblem
from prune_env.reporting import run_folder as runs
from prune_env.reporting import summary as report
from prune_env.training.distillation import DistillationConfig, Teacher
from prune_env.training.pretrained import pretrained, with_network_normalisation
from qmix_agent import QMIX, QMIXConfig


@dataclass(frozen=True)
class Config:
    network: str = "small_cnn"
    """small_cnn (for digits), alexnet, vgg16, resnet20 or resnet56"""
    data: str = "digits"
    """digits, cifar10, cifar100, or a folder PATH/{train,test}/<class>/*"""
    weights: Path | None = None
    """trained weights; without them the network is trained once and cached"""
    name: str | None = None
    """of the folder under `out`; by default network, data and a number"""
    out: Path = Path("runs")
    """folder of all runs"""
    resume: bool = False
    """go on with the run of this name, or with the latest of this network and data"""
    episodes: int = 400
    """of the search; each ends with one plan"""
    checkpoint_every: int = 10
    """episodes between checkpoints"""
    finalists: int = 4
    """the best plans, which all get the short distillation"""
    short_epochs: float = 1.0
    """passes over the training images in the short distillation"""
    seed: int = 0
    """of the agent"""
    device: str = "cpu"
    """of all networks, as torch names it: cpu, cuda, cuda:1"""
    cache: Path | None = None
    """a file that keeps accuracies for later runs on the same problem"""
    evaluator: Literal["local", "processes", "ray"] = "local"
    """where plans are measured: this process, processes (one to each processor), or ray (see RAY_ADDRESS)"""
    n_envs: int = 1
    """episodes played side by side; as many as there are workers keep them all busy"""
    env: Annotated[EnvConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=EnvConfig)
    """The game: what agents may do, what pays, and how plans are evaluated."""
    # The game is deterministic, pays at its end, and returns of good plans differ by little.
    qmix: QMIXConfig = field(default_factory=lambda: QMIXConfig(eval_episodes=1, standardise_returns=True))
    """The agent: its networks, learning, exploration and evaluation."""
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    """The training after the search, of the winner and of the uniform network."""

    def __post_init__(self) -> None:
        if min(self.episodes, self.checkpoint_every, self.finalists, self.n_envs) < 1 or self.short_epochs <= 0:
            raise ValueError("episodes, checkpoint-every, finalists, n-envs must be at least 1, short-epochs above 0")
        if self.env.target_macs is None:
            raise ValueError("this script compares networks of one cost: set target-macs, with reward budget or amc")
        if self.env.max_cycles is not None and self.env.max_cycles < self.env.rounds:
            raise ValueError(f"max-cycles must not be below rounds ({self.env.rounds}): no episode would finish")
        check_device(self.device)


def main(config: Config) -> None:
    data = with_network_normalisation(config.network, load(config.data))
    model = pretrained(config.network, data, config.weights, device=config.device)
    env = FilterPruneEnv(model, data, config.env, device=config.device, cache=config.cache, evaluator=config.evaluator)
    settings = dataclasses.asdict(dataclasses.replace(config, resume=False, name=None))
    directory = runs.directory(config.out, config.name, f"{config.network}-{data.name}", settings, config.resume)
    print(f"Writing to {directory}")

    # Search: QMIX plays; the environment's archive keeps every finished plan.
    checkpoints = directory / "checkpoint"
    if config.resume and QMIX.checkpoint_exists(checkpoints):
        agent = QMIX.load(checkpoints, env, device=config.device)
    else:
        agent = QMIX(env, config.qmix, seed=config.seed, device=config.device)
    agent.learn(config.episodes, directory, checkpoints, config.checkpoint_every, n_envs=config.n_envs)
    env.close()
    episodes = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]

    # From plans to a network, without a look at the test set. Uniform pruning gets the same distillation.
    plans = [entry.plan for entry in env.archive.best(config.finalists)]
    common = {"teacher": Teacher(env.model, config.device), "checkpoints": checkpoints, "device": config.device}
    finalists = choose(env, plans, config.distillation, short_epochs=config.short_epochs, **common)
    winner, uniform = finalists[0].plan, env.budget.uniform()
    networks = {"original": model}
    for name, plan in (("uniform L1", uniform), ("QMIX", winner)):
        networks[name] = distil_fully(env, plan, config.distillation, title=name, **common)

    # The test set, once.
    test = {name: accuracy(network, data, data.test, config.device) for name, network in networks.items()}
    before = {
        name: accuracy(recalibrated(env, plan), data, data.test, config.device)
        for name, plan in (("uniform L1", uniform), ("QMIX", winner))
    }
    plans_of = {"original": env.full_plan, "uniform L1": uniform, "QMIX": winner}
    metrics = {
        "original_accuracy": test["original"],
        "pruned_accuracy": test["QMIX"],
        "uniform_accuracy": test["uniform L1"],
        "pruned_accuracy_before_distillation": before["QMIX"],
        "uniform_accuracy_before_distillation": before["uniform L1"],
        **dict(zip(("macs_ratio", "params_ratio"), env.cost_ratios(winner), strict=True)),
        "evaluated_plans": len(env.archive),
        "search_seconds": sum(row.get("seconds", 0.0) for row in episodes),
    }
    game = config.env
    ranks = ProblemConfig(game.importance, game.calibration_images, prove=game.prove, problem_seed=game.problem_seed)
    problem = PruningProblem.create(model, data, ranks)
    save_pruned(directory, networks["QMIX"], winner, problem, base=config.network, metrics=metrics)
    if config.env.round_to > 1:  # what rounding gains: the same budget without it, as fast as it is
        name = "L1, unrounded"
        plans_of[name] = runs.unrounded_uniform(env)
        networks[name] = recalibrated(env, plans_of[name])
    rows = runs.figures(directory, env, networks, plans_of, test, before, winner="QMIX")
    runs.pictures(directory, env, episodes, uniform, winner)
    print("\nFinalists, % of all reward images as cut (the search samples statistics) and shortly distilled:")
    for one in finalists:
        print(f"  {100 * one.recalibrated_accuracy:6.2f} {100 * one.distilled_accuracy:6.2f}  {one.plan}")
    print(f"\nTest accuracy on {data.name}, {len(data.test)} images: one is {100 / len(data.test):.2f} points\n")
    print(report.table(rows))
    if config.env.round_to > 1:
        print("L1, unrounded: the uniform plan of the same budget with round-to 1, to compare latencies with")
    print(f"\nSearch: {metrics['evaluated_plans']} plans in {metrics['search_seconds']:.0f} s. All files: {directory}")


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except (ValueError, OSError) as error:  # a missing folder, a network that does not fit: one line says it
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nInterrupted. Everything up to the last checkpoint is kept: the same command with --resume goes on.")
