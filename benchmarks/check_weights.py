"""Read the test set with every published network, and compare with the accuracy that was published.

    python -m benchmarks.check_weights --data cifar10

`weights/` has the networks behind figures of the documents, as `save_pruned` wrote them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from prune_env import load_pruned
from prune_env.common.command import one_line_errors
from prune_env.common.settings import Settings
from prune_env.data import load
from prune_env.deploy.record import read_record
from prune_env.scoring.metric import accuracy

WEIGHTS = Path(__file__).with_name("weights")
TOLERANCE = 0.001
"""Machines round differently, which may turn a few of 10,000 answers."""


@dataclass(frozen=True)
class Config(Settings):
    data: str = "cifar10"
    """cifar10, or CIFAR-10 as an image folder."""
    weights: Path = WEIGHTS
    """Folder of the networks."""


def main(config: Config) -> None:
    """Print a line for each network.

    Raises:
        ValueError: There is no network, or one is not as accurate as published.
    """
    folders = sorted(record.parent for record in config.weights.glob("*/pruned.json"))
    if not folders:
        raise ValueError(f"{config.weights} has no folder with a pruned.json; give the folder of the networks")
    data, wrong = load(config.data), []
    for folder in folders:
        record = read_record(folder)
        published = record["metrics"].get("test_accuracy")
        if published is None:
            raise ValueError(f"{folder / 'pruned.json'} has no test_accuracy; give a folder of published networks")
        constants = record["normalisation"]  # of its training
        normalised = data.with_normalisation(constants["mean"], constants["std"])
        found = accuracy(load_pruned(folder), normalised, normalised.test)
        print(f"{folder.name}: {100 * found:.2f} % of the test set, published {100 * published:.2f} %", flush=True)
        if abs(found - published) > TOLERANCE:
            wrong.append(folder.name)
    if wrong:
        raise ValueError(f"not as accurate as published: {', '.join(wrong)}; are the data CIFAR-10, unchanged?")


if __name__ == "__main__":
    with one_line_errors():
        main(tyro.cli(Config, prog="python -m benchmarks.check_weights", description=__doc__))
