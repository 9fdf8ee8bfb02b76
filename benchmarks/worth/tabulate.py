"""Make a table of trained plans, `prune_env.TrainedPlans`, from the rows of benchmarks.worth.

    python -m benchmarks.worth.tabulate runs/worth --name resnet20-cifar10-0.3-trained-v1

The table holds one section of the report: one problem, budget and recipe. Networks of other packages are left out,
because no plan describes them.

Letters: N networks, E lengths of training, S seeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from prune_env.common.command import one_line_errors
from prune_env.common.settings import Count, Settings
from prune_env.evaluation.trained_plans import TrainedPlans

from .run import ENTRIES
from .signals import LOWER_IS_BETTER, SIGNALS
from .worths import Worth, worths


@dataclass(frozen=True)
class Config(Settings):
    folder: tyro.conf.Positional[Path]
    """Folder that benchmarks.worth wrote to."""
    name: str
    """Name of the table and of its file."""
    section: Count = 1
    """Section of the report, counted from 1."""
    out: Path = Path(".")
    """Folder of the file."""


def main(config: Config) -> None:
    """Write the table."""
    found = list(worths(config.folder))
    if len(found) < config.section:
        raise ValueError(f"{config.folder} has {len(found)} sections; run benchmarks.worth first, or lower --section")
    worth = found[config.section - 1]
    table = tabulated(worth, config.name)
    file = config.out / f"{config.name}.npz"
    table.save(file)
    trained = np.isfinite(table.test_accuracy).sum((0, 2))
    lengths = ", ".join(f"{count} of {epochs:g} epochs" for count, epochs in zip(trained, table.epochs, strict=True))
    print(f"{file}: {worth.title}; {len(table.plans)} plans, trainings: {lengths}")


def tabulated(worth: Worth, name: str) -> TrainedPlans:
    """Return the table of a section.

    Args:
        worth: The section.
        name: Name of the table.

    Raises:
        ValueError: There are no plans, or a network has an old row of signals.
    """
    chosen = [number for number, row in enumerate(worth.networks) if row["plan"] is not None]
    networks = [worth.networks[number] for number in chosen]
    if not networks:
        raise ValueError(f"section {worth.title!r} has no plans; choose another one with --section")
    needed = ENTRIES | {"output_change"}
    if missing := [entry for row in networks for entry in sorted(needed - set(row))]:
        raise ValueError(f"a plan in section {worth.title!r} has no {missing[0]}; run benchmarks.worth for it again")
    seeds = sorted({seed for results in worth.results for _, seed in results})
    return TrainedPlans(
        name=name,
        target_macs=worth.target,
        groups=np.array(networks[0]["groups"]),
        full_plan=np.array(networks[0]["full_plan"]),
        plans=np.array([row["plan"] for row in networks]),
        macs_ratio=np.array([row["macs_ratio"] for row in networks]),
        source=np.array([row["sources"][0] for row in networks]),
        epochs=np.array(worth.lengths, float),
        seeds=np.array(seeds),
        reward_accuracy=_accuracies(worth, seeds, "reward_accuracy")[chosen],
        test_accuracy=_accuracies(worth, seeds, "test_accuracy")[chosen],
        signals={signal: np.array([row[signal] for row in networks]) for signal in SIGNALS},
        lower_is_better=LOWER_IS_BETTER,
        settings={
            "problem": worth.problem,
            "weights_fingerprint": networks[0]["weights_fingerprint"],
            "recipe": worth.recipe,
        },
    )


def _accuracies(worth: Worth, seeds: list[int], entry: str) -> np.ndarray:
    """Return an accuracy of every network after training, [N, E, S], NaN where there is none."""
    none = np.full(len(worth.networks), np.nan)
    by_length = [worth.accuracies(epochs, entry) for epochs in worth.lengths]
    return np.moveaxis(np.array([[one.get(seed, none) for seed in seeds] for one in by_length]), -1, 0)


if __name__ == "__main__":
    with one_line_errors():
        main(tyro.cli(Config, prog="python -m benchmarks.worth.tabulate", description=__doc__))
