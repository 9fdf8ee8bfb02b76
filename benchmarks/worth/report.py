"""Make tables and a picture of what pruned networks are worth.

    python -m benchmarks.worth.report runs/worth

One section for each problem, budget and recipe. Its first table has test accuracies, means over seeds and networks,
with the standard deviation over networks. The second has Kendall's tau between everything that can be known earlier and
the test accuracy, with bootstrap intervals over networks. 'Test images after the same training' is another seed, which
shares no noise: a signal of that tau tells as much as one whole training. 'Better half' are the networks that are
better as cut. Winners of searches were chosen by their accuracy as cut, which is then worth less among them.

Letters: S seeds, N networks.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tyro

from prune_env.common.command import one_line_errors, require_packages
from prune_env.common.figure_style import (
    COLOURS,
    INK,
    add_legend,
    add_title,
    new_figure,
    save_figure,
    style_axes,
)
from prune_env.common.files import replacing
from prune_env.common.settings import Settings

from ..compare import rows
from ..compare.rows import Row
from ..compare.statistics import BOUNDS
from .networks import network_key
from .run import RECIPE

SIGNALS = {
    "search_accuracy": "accuracy as cut, images of a search",
    "accuracy": "accuracy as cut",
    "cross_entropy": "cross-entropy as cut",
    "finetuned_accuracy": "accuracy after ten batches",
    "finetuned_cross_entropy": "cross-entropy after ten batches",
}
"""What is known of a network before it is trained; all but the first are measured on the whole reward split."""
RESAMPLES = 2000
FEWEST = 5
"""Networks that a rank correlation needs."""
STYLES = [(colour, style) for style in ("-", "--", ":") for colour in COLOURS]


@dataclass(frozen=True)
class Config(Settings):
    folder: tyro.conf.Positional[Path]
    """Folder that benchmarks.worth wrote to."""


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
    def sources(self) -> list[str]:
        """Where networks come from."""
        return list(dict.fromkeys(source for row in self.networks for source in row["sources"]))

    @property
    def title(self) -> str:
        """Network, budget, and what differs from the default recipe."""
        usual = asdict(RECIPE) | {"teacher": "itself"}
        given = [
            f"{name.replace('_', ' ')} {value}"
            for name, value in self.recipe.items()
            if name != "teacher_fingerprint" and value != usual[name]
        ]
        recipe = f" ({', '.join(given)})" if given else ""
        return f"{self.problem['network']} on {self.problem['data']}, {100 * self.target:g} % of the MACs{recipe}"

    def of(self, source: str) -> list[int]:
        """Return the numbers of the networks of a source, each as often as the source found it."""
        return [number for number, row in enumerate(self.networks) for one in row["sources"] if one == source]

    def accuracies(self, epochs: float, entry: str = "test_accuracy") -> dict[int, np.ndarray]:
        """Return an accuracy of every network [N] after a number of epochs, by seed; NaN where there is none."""
        seeds = sorted({seed for results in self.results for length, seed in results if length == epochs})
        missing: Row = {entry: np.nan}
        return {
            seed: np.array([results.get((epochs, seed), missing)[entry] for results in self.results]) for seed in seeds
        }

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


def section(worth: Worth) -> str:
    """Return the tables of a budget and a recipe as Markdown."""
    return "\n".join([f"## {worth.title}", "", *_accuracies(worth), "", *_correlations(worth)]).rstrip() + "\n"


def _accuracies(worth: Worth) -> list[str]:
    """Return a table with a row for each source, the best ones after the longest training first."""
    lengths = worth.lengths
    means = {epochs: worth.means(epochs) for epochs in lengths}
    averages = [worth.averages(epochs) for epochs in reversed(lengths)]
    trainings = " | ".join(f"{epochs:g} epochs" for epochs in lengths)
    lines = [
        f"| network | number | evaluations | MACs, % | as cut, % | {trainings} |",
        "|---" * (len(lengths) + 5) + "|",
    ]
    for source in sorted(worth.sources, key=lambda name: [-np.nan_to_num(values[name]) for values in averages]):
        mine = [worth.networks[number] for number in worth.of(source)]
        looks = [row["evaluations"] for row in mine if row.get("evaluations") is not None]
        cells = [f"{np.mean(looks):.0f}" if looks else ""]
        cells += [_percent([row.get(name, np.nan) for row in mine]) for name in ("macs_ratio", "accuracy")]
        cells += [_percent([means[epochs][number] for number in worth.of(source)]) for epochs in lengths]
        lines.append(f"| {source} | {len(set(worth.of(source)))} | {' | '.join(cells)} |")
    return lines


def _correlations(worth: Worth) -> list[str]:
    """Return a table of Kendall's tau between what is known early and the test accuracy, for every length.

    Each cell is the mean over seeds of tau with the test accuracies of one seed, so that all rows are measured against
    the same noise. What comes from a training is never paired with its own seed and length.
    """
    lengths = worth.lengths
    tests = {epochs: worth.accuracies(epochs) for epochs in lengths}
    known: dict[str, dict[tuple[float, int], np.ndarray]] = {}
    for name, label in SIGNALS.items():
        values = np.array([row.get(name, np.nan) for row in worth.networks], float)
        known[label] = {(0.0, -1): -values if "entropy" in name else values}
    for epochs in lengths:
        by_seed = worth.accuracies(epochs, "reward_accuracy")
        known[f"reward images after {epochs:g} epochs"] = {(epochs, seed): one for seed, one in by_seed.items()}
    known["test images after the same training"] = {
        (epochs, seed): one for epochs in lengths for seed, one in tests[epochs].items()
    }
    accuracy = np.array([row.get("accuracy", np.nan) for row in worth.networks], float)
    better = accuracy >= np.nanmedian(accuracy) if not np.isnan(accuracy).all() else np.zeros(len(accuracy), bool)
    lines = [
        f"| known early | {' | '.join(f'test, {epochs:g} epochs' for epochs in lengths)} | the same, better half |",
        "|---" * (len(lengths) + 2) + "|",
    ]
    for label, signals in known.items():
        cells = []
        for epochs, keep in [*((epochs, None) for epochs in lengths), (lengths[-1], better)]:
            pairs = [
                (signal, test)
                for (trained, seed), signal in signals.items()
                for other, test in tests[epochs].items()
                if (trained < epochs and not label.startswith("test")) or (trained == epochs and seed != other)
            ]
            cells.append(_tau(pairs, keep))
        if any(cells):
            lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines if len(lines) > 2 else []


def _tau(pairs: Sequence[tuple[np.ndarray, np.ndarray]], keep: np.ndarray | None = None) -> str:
    """Return the mean Kendall's tau-b of pairs of rankings [N], with its bootstrap interval over networks.

    Args:
        pairs: What is known and what came out.
        keep: The networks that count, [N]; None for all.
    """
    known = [~np.isnan(signal) & ~np.isnan(test) & (True if keep is None else keep) for signal, test in pairs]
    if not pairs or (both := np.logical_and.reduce(known)).sum() < FEWEST:
        return ""
    signs = [(_signs(signal[both]), _signs(test[both])) for signal, test in pairs]
    value = _mean([_tau_b(*pair) for pair in signs])
    if np.isnan(value):
        return ""
    size, rng = int(both.sum()), np.random.default_rng(0)
    samples = rng.integers(size, size=(RESAMPLES, size))
    means = [_mean([_tau_b(*(one[np.ix_(sample, sample)] for one in pair)) for pair in signs]) for sample in samples]
    low, high = np.nanquantile(means, BOUNDS)
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def _signs(values: np.ndarray) -> np.ndarray:
    """Return the order of every pair of networks [N, N]: 1, -1, or 0 if they are equal."""
    return np.sign(values[:, None] - values[None, :])


def _tau_b(known: np.ndarray, test: np.ndarray) -> float:
    """Return Kendall's tau-b from the orders of all pairs [N, N], NaN if one ranking has no order."""
    ordered = np.sqrt(np.abs(known).sum() * np.abs(test).sum())
    return float((known * test).sum() / ordered) if ordered else np.nan


def plot(worth: Worth, file: Path) -> None:
    """Plot the mean test accuracy of every source over the epochs."""
    figure = new_figure(7.5, 5.0)
    axes = figure.add_subplot()
    style_axes(axes)
    averages = [worth.averages(epochs) for epochs in worth.lengths]
    for source, (colour, style) in zip(worth.sources, itertools.cycle(STYLES), strict=False):
        means = [100 * values[source] for values in averages]
        axes.plot(worth.lengths, means, style, marker="o", markersize=4, color=colour, label=source)
    axes.set_xscale("log")
    axes.set_xticks(worth.lengths, [f"{epochs:g}" for epochs in worth.lengths])
    axes.minorticks_off()
    axes.set_xlabel("Epochs of distillation", color=INK)
    axes.set_ylabel("Test accuracy, %", color=INK)
    add_title(figure, f"{worth.problem['network']}, {100 * worth.target:g} % of the MACs")
    add_legend(axes)
    save_figure(figure, file)


def main(config: Config) -> None:
    """Print the tables, and write them and the pictures to the folder."""
    require_packages(["matplotlib", "scipy"], "the report", "benchmarks")
    found = list(worths(config.folder))
    if not found:
        raise ValueError(f"{config.folder} has no rows.jsonl with rows; run benchmarks.worth first")
    text = "\n".join(map(section, found))
    with replacing(config.folder / "worth.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    for number, worth in enumerate(found, 1):
        plot(worth, config.folder / f"worth-{number}.png")
    print(text)


def _mean(values: Sequence[float]) -> float:
    """Return the mean of the numbers among the values, NaN if there are none."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else np.nan


def _percent(values: Sequence[float]) -> str:
    """Return the mean in percent, with the standard deviation over networks if they differ."""
    known = [100 * value for value in values if not np.isnan(value)]
    if not known:
        return ""
    return f"{np.mean(known):.2f}" + (f" ± {np.std(known, ddof=1):.2f}" if np.ptp(known) else "")


if __name__ == "__main__":
    with one_line_errors():
        main(tyro.cli(Config, prog="python -m benchmarks.worth.report", description=__doc__))
