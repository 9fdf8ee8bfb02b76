"""What the files of benchmarks.worth hold: the networks of a problem, a budget and a recipe, and their trainings.

Letters: S seeds, N networks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from prune_env.pruning.problem import ProblemConfig

from ..compare import rows
from ..compare.rows import Row
from .networks import network_key
from .recipe import RECIPE


@dataclass(frozen=True)
class Worth:
    """The trained networks of a problem, a budget and a recipe."""

    problem: Row
    target: float
    recipe: Row
    networks: list[Row]
    """What was known of each network before training."""
    results: list[dict[tuple[float, int], Row]]
    """For each network: (epochs, seed) -> its row."""

    @property
    def lengths(self) -> list[float]:
        """Numbers of epochs, the fewest first."""
        return sorted({epochs for results in self.results for epochs, _ in results})

    @property
    def main_length(self) -> float:
        """The number of epochs that most networks were trained for; of equally common ones the largest."""
        return max(self.lengths, key=lambda length: (np.isfinite(self.means(length)).sum(), length))

    @property
    def sources(self) -> list[str]:
        """Where networks come from."""
        return list(dict.fromkeys(source for row in self.networks for source in row["sources"]))

    @property
    def title(self) -> str:
        """Network, budget, and what differs from the default ranking and recipe."""
        usual = asdict(RECIPE) | {"teacher": "itself"}
        given = [
            f"{name.replace('_', ' ')} {value}"
            for name, value in self.recipe.items()
            if name != "teacher_fingerprint" and value != usual[name]
        ]
        if (importance := self.problem.get("importance")) not in (None, ProblemConfig().importance):
            given.insert(0, f"ranking {importance}")
        recipe = f" ({', '.join(given)})" if given else ""
        return f"{self.problem['network']} on {self.problem['data']}, {100 * self.target:g} % of the MACs{recipe}"

    def of(self, source: str) -> list[int]:
        """Return the numbers of the networks of a source, each as often as the source found it."""
        return [number for number, row in enumerate(self.networks) for one in row["sources"] if one == source]

    def signal(self, name: str) -> np.ndarray:
        """Return what was known of every network before training [N], NaN where it was not measured."""
        return np.array([row.get(name, np.nan) for row in self.networks], float)

    def accuracies(self, epochs: float, entry: str = "test_accuracy") -> dict[int, np.ndarray]:
        """Return an accuracy of every network [N] after a number of epochs, by seed; NaN where there is none."""
        seeds = sorted({seed for results in self.results for length, seed in results if length == epochs})
        missing: Row = {entry: np.nan}
        return {
            seed: np.array([results.get((epochs, seed), missing)[entry] for results in self.results]) for seed in seeds
        }

    def complete(self, epochs: float) -> list[np.ndarray]:
        """Return the test accuracies [N] of the seeds that all networks of this length were trained with."""
        every = list(self.accuracies(epochs).values())
        trained = np.isfinite(every).any(0)
        return [one for one in every if (np.isfinite(one) == trained).all()]

    def means(self, epochs: float) -> np.ndarray:
        """Return the mean test accuracy over seeds of every network [N], NaN where there is none."""
        values = np.stack(list(self.accuracies(epochs).values()))  # [S, N]
        count = (~np.isnan(values)).sum(0)
        return np.where(count, np.nansum(values, 0) / np.maximum(count, 1), np.nan)

    def averages(self, epochs: float) -> dict[str, float]:
        """Return the mean test accuracy of every source after a number of epochs, NaN where there is none."""
        means = self.means(epochs)
        return {source: _mean([means[number] for number in self.of(source)]) for source in self.sources}


def worths(folder: Path) -> Iterator[Worth]:
    """Yield what a folder has, by problem, budget and recipe."""
    before = {network_key(row): row for row in rows.read_file(folder / "signals.jsonl")}
    groups: dict[str, dict[str, list[Row]]] = {}
    for row in rows.read_file(folder / "rows.jsonl"):
        key = rows.canonical([row["problem"], row["weights_fingerprint"], row["target_macs"], row["recipe"]])
        groups.setdefault(key, {}).setdefault(network_key(row), []).append(row)
    for group in groups.values():
        networks = [before.get(name, found[0]) for name, found in group.items()]
        results = [{(row["epochs"], row["seed"]): row for row in found} for found in group.values()]
        first = next(iter(group.values()))[0]
        yield Worth(first["problem"], first["target_macs"], first["recipe"], networks, results)


def _mean(values: Sequence[float]) -> float:
    """Return the mean of the numbers among the values, NaN if there are none."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else np.nan
