"""Make tables and a picture of what pruned networks are worth.

    python -m benchmarks.worth.report runs/worth

One section for each budget and recipe: test accuracy over epochs, and how well everything that can be known earlier
ranks the networks. Letters: N networks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from prune_env.common.command import one_line_errors, require_packages
from prune_env.common.figure_style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
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
from ..compare.statistics import BOUNDS, kendall

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
STYLES = [(colour, style) for style in ("-", "--", ":") for colour in (ORANGE, BLUE, GREEN, PURPLE, INK, GREY)]


@dataclass(frozen=True)
class Config(Settings):
    folder: tyro.conf.Positional[Path]
    """Folder that benchmarks.worth wrote to."""


@dataclass(frozen=True)
class Worth:
    """The trained networks of a budget and a recipe."""

    target: float
    recipe: Row
    networks: list[Row]
    """Rows of the networks before training; `results` has those after."""
    results: list[dict[tuple[float, int], Row]]
    """For each network: (epochs, seed) -> its row."""

    @property
    def lengths(self) -> list[float]:
        """Numbers of epochs, the fewest first."""
        return sorted({epochs for results in self.results for epochs, _ in results})

    @property
    def title(self) -> str:
        """Budget and recipe in words; settings that are defaults are left out."""
        told = {name: self.recipe[name] for name in ("teacher", "lr", "batch_size", "alpha", "muon_lr", "ema_decay")}
        settings = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in told.items())
        return f"{100 * self.target:g} % of the MACs ({settings})"

    def accuracies(self, network: int, epochs: float, entry: str = "test_accuracy") -> list[float]:
        """Return an accuracy of a network after a number of epochs, for every seed."""
        return [row[entry] for (length, _), row in self.results[network].items() if length == epochs]

    def means(self, epochs: float, entry: str = "test_accuracy") -> np.ndarray:
        """Return the mean over seeds of an accuracy of every network [N], NaN where there is none."""
        found = [self.accuracies(number, epochs, entry) for number in range(len(self.networks))]
        return np.array([np.mean(values) if values else np.nan for values in found])

    def seeds(self, epochs: float) -> list[np.ndarray]:
        """Return the test accuracies of every network [N] after a number of epochs, for every seed."""
        names = sorted({seed for results in self.results for length, seed in results if length == epochs})
        return [
            np.array(
                [
                    results[epochs, seed]["test_accuracy"] if (epochs, seed) in results else np.nan
                    for results in self.results
                ]
            )
            for seed in names
        ]


def worths(folder: Path) -> Iterator[Worth]:
    """Yield what a folder has, by recipe and budget."""
    before = {_network(row): row for row in rows.read_file(folder / "signals.jsonl")}
    found: dict[str, list[Row]] = {}
    for row in rows.read_file(folder / "rows.jsonl"):
        found.setdefault(rows.canonical([row["target_macs"], row["recipe"], row["weights_fingerprint"]]), []).append(
            row
        )
    for group in found.values():
        keys = list(dict.fromkeys(map(_network, group)))
        results = [{(row["epochs"], row["seed"]): row for row in group if _network(row) == key} for key in keys]
        networks = [before.get(key, next(iter(mine.values()))) for key, mine in zip(keys, results, strict=True)]
        yield Worth(group[0]["target_macs"], group[0]["recipe"], networks, results)


def section(worth: Worth) -> str:
    """Return the tables of a budget and a recipe as Markdown."""
    return "\n".join([f"## {worth.title}", "", *_accuracies(worth), "", *_correlations(worth)]).rstrip() + "\n"


def _accuracies(worth: Worth) -> list[str]:
    """Return a table with a row for each source, the best one first."""
    lengths, order = worth.lengths, np.nan_to_num(worth.means(worth.lengths[-1]))
    sources = sorted(
        dict.fromkeys(row["source"] for row in worth.networks),
        key=lambda source: -np.mean([order[number] for number in _of(worth, source)]),
    )
    lines = [
        f"| network | number | MACs, % | as cut, % | {' | '.join(f'{epochs:g} epochs' for epochs in lengths)} |",
        "|---" * (len(lengths) + 4) + "|",
    ]
    for source in sources:
        mine = _of(worth, source)
        cells = [
            _percent([worth.networks[number].get(name, np.nan) for number in mine])
            for name in ("macs_ratio", "accuracy")
        ]
        cells += [
            _percent([value for number in mine for value in worth.accuracies(number, epochs)]) for epochs in lengths
        ]
        lines.append(f"| {source} | {len(mine)} | {' | '.join(cells)} |")
    return lines


def _correlations(worth: Worth) -> list[str]:
    """Return a table of Kendall's tau between what is known early and the test accuracy, for every length."""
    known = {
        label: np.array([row.get(name, np.nan) for row in worth.networks]) * (-1 if "entropy" in name else 1)
        for name, label in SIGNALS.items()
    }
    known |= {
        f"reward images after {epochs:g} epochs": worth.means(epochs, "reward_accuracy") for epochs in worth.lengths
    }
    lengths, last = worth.lengths, worth.means(worth.lengths[-1])
    better = np.where(last >= np.nanmedian(last), last, np.nan)
    lines = [
        f"| known early | {' | '.join(f'test, {epochs:g} epochs' for epochs in lengths)} | the same, better half |",
        "|---" * (len(lengths) + 2) + "|",
    ]
    for label, values in known.items():
        cells = [_tau(values, worth.means(epochs)) for epochs in lengths]
        if any(cells):
            lines.append(f"| {label} | {' | '.join(cells)} | {_tau(values, better)} |")
    ceilings = [_ceiling(worth, epochs) for epochs in lengths]
    if any(ceilings):
        lines.append(f"| the test with another seed | {' | '.join(ceilings)} | |")
    return lines if len(lines) > 2 else []


def _tau(known: np.ndarray, result: np.ndarray) -> str:
    """Return Kendall's tau of two rankings of networks [N], with its bootstrap interval; empty for few networks."""
    both = ~np.isnan(known) & ~np.isnan(result)
    if both.sum() < FEWEST:
        return ""
    known, result, rng = known[both], result[both], np.random.default_rng(0)
    drawn = rng.integers(len(known), size=(RESAMPLES, len(known)))
    taus = np.array([_kendall(known[sample], result[sample]) for sample in drawn])
    low, high = np.quantile(np.nan_to_num(taus), BOUNDS)  # where all are equal, nothing is ranked
    return f"{_kendall(known, result):.2f} [{low:.2f}, {high:.2f}]"


def _kendall(known: np.ndarray, result: np.ndarray) -> float:
    return kendall(list(zip(known, result, strict=True)))[0]


def _ceiling(worth: Worth, epochs: float) -> str:
    """Return the mean tau between two seeds: what the noise of training leaves of a perfect ranking."""
    seeds = worth.seeds(epochs)
    taus = []
    for first in range(len(seeds)):
        for second in range(first):
            both = ~np.isnan(seeds[first]) & ~np.isnan(seeds[second])
            if both.sum() >= FEWEST:
                taus.append(_kendall(seeds[first][both], seeds[second][both]))
    return f"{np.mean(taus):.2f}" if taus else ""


def plot(worth: Worth, file: Path) -> None:
    """Plot the mean test accuracy of every source over the epochs."""
    figure = new_figure(7.5, 5.0)
    axes = figure.add_subplot()
    style_axes(axes)
    sources = dict.fromkeys(row["source"] for row in worth.networks)
    for source, (colour, style) in zip(sources, STYLES, strict=False):
        mine = _of(worth, source)
        points = [
            (epochs, 100 * np.mean(values))
            for epochs in worth.lengths
            if (values := [value for number in mine for value in worth.accuracies(number, epochs)])
        ]
        axes.plot(*zip(*points, strict=True), style, marker="o", markersize=4, color=colour, label=source)
    axes.set_xscale("log")
    axes.set_xticks(worth.lengths, [f"{epochs:g}" for epochs in worth.lengths])
    axes.minorticks_off()
    axes.set_xlabel("Epochs of distillation", color=INK)
    axes.set_ylabel("Test accuracy, %", color=INK)
    add_title(figure, f"What networks of {100 * worth.target:g} % of the MACs are worth")
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


def _of(worth: Worth, source: str) -> list[int]:
    """Return the numbers of the networks of a source."""
    return [number for number, row in enumerate(worth.networks) if row["source"] == source]


def _percent(values: Sequence[float]) -> str:
    """Return the mean in percent, with the standard deviation if there are several values."""
    known = [100 * value for value in values if not np.isnan(value)]
    if not known:
        return ""
    return f"{np.mean(known):.2f}" + (f" ± {np.std(known, ddof=1):.2f}" if len(known) > 1 else "")


def _network(row: Row) -> str:
    """Return a text that is equal for rows of the same network."""
    return rows.canonical(
        [row["problem"], row["weights_fingerprint"], row["target_macs"], row["plan"] or row["source"]]
    )


if __name__ == "__main__":
    with one_line_errors():
        main(tyro.cli(Config, prog="python -m benchmarks.worth.report", description=__doc__))
