"""Make tables and pictures of what pruned networks are worth.

    python -m benchmarks.worth.report runs/worth

One section for each problem, budget and recipe. Its first table has test accuracies, means over seeds and networks,
with the standard deviation over networks. The second has Kendall's tau between everything that can be known earlier and
the test accuracy, with bootstrap intervals over networks and their number. 'Test images after another training' has
another seed: a signal of that tau tells as much as a whole training. The better half is that by the signal of the row.
Winners of searches were chosen by their accuracy as cut, which is then worth less among them. One picture shows
accuracies over the length of training, one over every signal.

Letters: N networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from prune_env.common.command import one_line_errors, require_packages
from prune_env.common.files import replacing
from prune_env.common.rank_correlation import FEWEST, Pair, rank_correlation
from prune_env.common.settings import Settings

from . import plots
from .signals import LOWER_IS_BETTER, SIGNALS
from .worths import Worth, worths


@dataclass(frozen=True)
class Config(Settings):
    folder: tyro.conf.Positional[Path]
    """Folder that benchmarks.worth wrote to."""


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

    What is known before training is ranked against the seeds that all networks of a length have, one by one, so that
    all rows are measured against the same noise. What comes from a training is never paired with its own seed and
    length.
    """
    lengths, main = worth.lengths, worth.main_length
    lines = [
        f"| known early | {' | '.join(f'test, {epochs:g} epochs' for epochs in lengths)} "
        f"| better half by it, {main:g} epochs |",
        "|---" * (len(lengths) + 2) + "|",
    ]
    for name, label in SIGNALS.items():
        values = worth.signal(name) * (-1 if name in LOWER_IS_BETTER else 1)
        cells = [_tau([(values, test) for test in worth.complete(epochs)]) for epochs in lengths]
        half = np.where(values >= np.nanmedian(values), values, np.nan) if np.isfinite(values).any() else values
        lines.append(_line(label, [*cells, _tau([(half, test) for test in worth.complete(main)])]))
    for trained in lengths:
        early = worth.accuracies(trained, "reward_accuracy")
        cells = [_tau(_pairs(early, trained, worth, epochs)) if trained <= epochs else "" for epochs in lengths]
        lines.append(_line(f"reward images after {trained:g} epochs", [*cells, ""]))
    cells = [_tau(_pairs(worth.accuracies(epochs), epochs, worth, epochs)) for epochs in lengths]
    lines.append(_line("test images after another training of this length", [*cells, ""]))
    lines = [line for line in lines if line]
    return lines if len(lines) > 2 else []


def _pairs(early: dict[int, np.ndarray], trained: float, worth: Worth, epochs: float) -> list[Pair]:
    """Return accuracies [N] by seed after a training, with the test accuracies of every other training of a length."""
    later = worth.accuracies(epochs).items()
    return [(one, test) for seed, one in early.items() for other, test in later if (trained, seed) != (epochs, other)]


def _line(label: str, cells: Sequence[str]) -> str:
    """Return a row of a table, or nothing if all its cells are empty."""
    return f"| {label} | {' | '.join(cells)} |" if any(cells) else ""


def _tau(pairs: Sequence[Pair]) -> str:
    """Return the mean rank correlation, or nothing with too few networks."""
    found = rank_correlation(pairs)
    return "" if found is None else str(found)


def main(config: Config) -> None:
    """Print the tables, and write them and the pictures to the folder."""
    require_packages(["matplotlib"], "the report", "benchmarks")
    found = list(worths(config.folder))
    if not found:
        raise ValueError(f"{config.folder} has no rows.jsonl with rows; run benchmarks.worth first")
    text = "\n".join(map(section, found))
    with replacing(config.folder / "worth.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    for number, worth in enumerate(found, 1):
        plots.over_epochs(worth, config.folder / f"worth-{number}.png")
        if len(worth.networks) >= FEWEST:
            plots.over_signals(worth, config.folder / f"signals-{number}.png")
    print(text)


def _percent(values: Sequence[float]) -> str:
    """Return the mean in percent, with the standard deviation over networks if they differ."""
    known = [100 * value for value in values if not np.isnan(value)]
    if not known:
        return ""
    return f"{np.mean(known):.2f}" + (f" ± {np.std(known, ddof=1):.2f}" if np.ptp(known) else "")


if __name__ == "__main__":
    with one_line_errors():
        main(tyro.cli(Config, prog="python -m benchmarks.worth.report", description=__doc__))
