"""Group rows that can be compared, and summarise the results of each method."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from . import plots
from .rows import Row, canonical, settings
from .statistics import Difference, Mean, difference, kendall, mean, mean_ranks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Panel = TypeVar("Panel")

REFERENCES = ("random", "uniform")
"""Methods that every other method is compared with."""
OWN_WEIGHTS = ("amc_ls",)
"""Methods that search with reconstructed weights; their search accuracies cannot be compared with those of others."""


@dataclass(frozen=True)
class Line:
    """The summary of a method on one problem and target. Values that the rows do not contain are NaN."""

    method: str
    seeds: int
    evaluations: float
    search: float
    rescored: float
    short: float
    result: Mean
    rank: float
    against: dict[str, Difference | None]
    search_seconds: float
    finalise_seconds: float


@dataclass(frozen=True)
class Comparison:
    """Rows with the same problem, number of plans and finalisation."""

    rows: list[Row]

    @property
    def finalised(self) -> bool:
        """Whether the best plans were distilled and tested."""
        return self.rows[0]["finalisation"] is not None

    @property
    def metric(self) -> str:
        """Name of the row's entry that ranks the methods."""
        return "test_accuracy" if self.finalised else "search_accuracy"

    @property
    def label(self) -> str:
        """Axis label of `metric`."""
        where = "Test accuracy after distillation" if self.finalised else "Accuracy on the reward images"
        return f"{where}, %"

    @property
    def network(self) -> str:
        """Name of the network."""
        return str(self.rows[0]["problem"]["network"])

    @property
    def title(self) -> str:
        """Title that names network, weights, data and number of plans."""
        problem = settings(self.rows[0])["problem"]
        weights = f" ({problem['weights']})" if problem["weights"] else ""
        batches = problem["finetune_batches"]
        trained = f", each finetuned for {batches} batches before it is evaluated" if batches else ""
        return f"{self.network}{weights} on {problem['data']}, {self.rows[0]['max_plans']} plans{trained}"

    @property
    def targets(self) -> list[float]:
        """Fractions of the MACs that may stay, the largest first."""
        return sorted({row["target_macs"] for row in self.rows}, reverse=True)

    def of(self, target: float | None, method: str | None = None) -> list[Row]:
        """Return the rows of a target and a method; None selects all."""
        return [row for row in self.rows if target in (None, row["target_macs"]) and method in (None, row["method"])]

    def values(self, target: float | None, method: str) -> dict[object, float]:
        """Return the results of a method by target and seed."""
        return {(row["target_macs"], row["seed"]): row[self.metric] for row in self.of(target, method)}

    def compares(self, method: str) -> bool:
        """Return whether the results of a method use the same weights as the results of the other methods."""
        return self.finalised or method not in OWN_WEIGHTS

    def lines(self, target: float | None) -> list[Line]:
        """Return one line per method, the best first.

        Methods with fewer seeds come later, because their results are not from the same seeds. Methods that cannot be
        compared come last and have no rank.

        Args:
            target: Fraction of the MACs. None averages the results of a seed over all targets; differences stay paired
                by target and seed.
        """
        values = {name: self.values(target, name) for name in dict.fromkeys(row["method"] for row in self.of(target))}
        rivals = {name: found for name, found in values.items() if self.compares(name)}
        ranks = mean_ranks(rivals)
        lines = [
            Line(
                method=name,
                seeds=len({row["seed"] for row in mine}),
                evaluations=_average(mine, "evaluations"),
                search=_average(mine, "search_accuracy"),
                rescored=_average(mine, "rescored_accuracy"),
                short=_average(mine, "short_test_accuracy"),
                result=mean(_by_seed(mine, self.metric)),
                rank=ranks.get(name, math.nan),
                against={
                    other: difference(values[name], values[other])
                    if other in values and other != name and self.compares(name)
                    else None
                    for other in REFERENCES
                },
                search_seconds=_average(mine, "search_seconds"),
                finalise_seconds=_average(mine, "short_seconds") + _average(mine, "full_seconds"),
            )
            for name in values
            if (mine := self.of(target, name))
        ]
        return sorted(lines, key=lambda line: (not self.compares(line.method), -line.seeds, -line.result.value))

    def plots(self) -> dict[str, Figure]:
        """Return the plots that the rows have enough data for, by name. They show the methods that can be compared."""
        lines = {target: [one for one in self.lines(target) if self.compares(one.method)] for target in self.targets}
        order = [line.method for line in self.lines(None) if self.compares(line.method)]
        if not order:
            return {}

        def panels(of: Callable[[float], Panel]) -> dict[str, Panel]:
            return {f"{100 * target:g} % of the MACs": of(target) for target in self.targets}

        def seeds(target: float) -> dict[str, list[float]]:
            return {line.method: list(self.values(target, line.method).values()) for line in lines[target]}

        def kept(target: float) -> dict[str, list[float]]:
            shares = {
                line.method: [np.array(row["plan"]) / row["full_plan"] for row in self.of(target, line.method)]
                for line in lines[target]
            }
            return {name: np.mean(plans, 0).tolist() for name, plans in shares.items()}

        def curves(target: float) -> dict[str, list[list[float]]]:
            rows = {name: self.of(target, name) for name in order if name not in OWN_WEIGHTS}
            return {name: [row["curve"] for row in mine] for name, mine in rows.items() if mine}

        means = panels(lambda target: {line.method: line.result for line in lines[target]})
        by_share = {
            name: {target: line.result for target in self.targets for line in lines[target] if line.method == name}
            for name in order
        }
        figures = {"methods": plots.methods(panels(seeds), means, self.label)}
        if len(self.targets) > 1:
            figures["front"] = plots.front(by_share, self.rows[0][f"original_{self.metric}"], self.label)
        searches = {title: found for title, found in panels(curves).items() if found}
        if searches:
            figures["curves"] = plots.curves(searches, panels(lambda target: self.of(target)[0]["optimum"]))
        figures["layers"] = plots.heat_map(panels(kept))
        if self.finalised:
            figures["correlation"] = plots.correlation(
                panels(self.finalists), "Reward images after the short distillation, %"
            )
        return figures

    def finalists(self, target: float) -> dict[str, list[tuple[float, float]]]:
        """Return (search accuracy, accuracy after the short distillation) of all finalists, by method."""
        return {
            row["method"]: [
                (finalist["search_accuracy"], finalist["distilled_accuracy"])
                for other in self.of(target, row["method"])
                for finalist in other["finalists"]
            ]
            for row in self.of(target)
            if row["method"] not in OWN_WEIGHTS
        }

    def correlations(self, target: float) -> list[tuple[str, int, float, float]]:
        """Return rank correlations: description, number of pairs, Kendall's tau and its p-value."""
        if not self.finalised:
            return []
        short = [pair for pairs in self.finalists(target).values() for pair in pairs]
        winners = [row for row in self.of(target) if row["method"] not in OWN_WEIGHTS]
        full = [
            (next(f["search_accuracy"] for f in row["finalists"] if f["plan"] == row["plan"]), row["test_accuracy"])
            for row in winners
        ]
        rescored = [(row["rescored_accuracy"], row["test_accuracy"]) for row in winners]
        pairs_of = {
            "search reward and reward images after the short distillation, all finalists": short,
            "search reward and test after the full distillation, winners": full,
            "all reward images, as cut, and test after the full distillation, winners": rescored,
        }
        return [(name, len(pairs), *kendall(pairs)) for name, pairs in pairs_of.items()]


def comparisons(found: Iterable[Row]) -> list[Comparison]:
    """Group rows that have the same settings and the same weights."""
    groups: dict[str, list[Row]] = {}
    for row in found:
        # Files are identified by name, and files of one name may hold different weights.
        key = canonical([settings(row), row["max_plans"], row.get("weights_fingerprint")])
        groups.setdefault(key, []).append(row)
    return [Comparison(group) for group in groups.values()]


def _average(found: list[Row], name: str) -> float:
    """Return the mean of an entry over the rows that have it, NaN if none has."""
    values = [row[name] for row in found if row.get(name) is not None]
    return float(np.mean(values)) if values else math.nan


def _by_seed(found: list[Row], name: str) -> list[float]:
    """Return the mean of an entry for each seed."""
    seeds = dict.fromkeys(row["seed"] for row in found)
    return [float(np.mean([row[name] for row in found if row["seed"] == seed])) for seed in seeds]
