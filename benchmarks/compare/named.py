"""Print a table of all search methods for every named problem that has rows.

    python -m benchmarks.compare.named benchmarks/results

ROWS are files or folders that benchmarks.compare wrote. A row belongs to a problem of `prune_env.list_problems()` if it
has the same network, weights, budget and settings. Of the same search with and without finalisation, one counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tyro

from prune_env import list_problems
from prune_env.common.command import one_line_errors
from prune_env.common.settings import Settings
from prune_env.game.problems import PROBLEMS
from prune_env.game.tabulated import FIXED

from . import rows
from .model import OWN_WEIGHTS
from .rows import Row
from .statistics import iqm, stratified_interval

FREE = {"target_macs", "prove", "precision", "linear"}
"""Settings that are not compared: the budget is an entry of its own, the proof changes no result, of precisions auto is
accepted as well, and no network of a named problem has hidden linear layers."""


@dataclass(frozen=True)
class Config(Settings):
    rows: tyro.conf.Positional[tuple[Path, ...]]
    """Files or folders that benchmarks.compare wrote."""


def main(config: Config) -> None:
    """Print a Markdown table for every problem with rows."""
    found = rows.read(config.rows)
    for name in list_problems():
        if mine := [row for row in found if problem_name(row) == name]:
            print(f"{name}\n\n{table(mine)}")


def problem_name(row: Row) -> str | None:
    """Return the name of the problem that a row belongs to, or None."""
    given = rows.with_defaults(row["problem"])
    for name, problem in PROBLEMS.items():
        pinned, tabulated = problem.config, problem.weights is None
        free = FREE | (set(FIXED) if tabulated else set())  # rows of the tabulated problem do not list FIXED settings
        known = {setting: value for setting, value in asdict(pinned).items() if setting not in free}
        if (
            (given["network"], given["tabulated"]) == (problem.network, tabulated)
            and pinned.targets == (row["target_macs"],)
            and given["precision"] in ("auto", pinned.precision)
            and rows.canonical({setting: given[setting] for setting in known}) == rows.canonical(known)
            and (tabulated or problem.weights_file.split()[0] == given["weights"])
            and (tabulated or row.get("weights_fingerprint", problem.weights) == problem.weights)
        ):
            return name
    return None


def table(found: Sequence[Row]) -> str:
    """Return a Markdown table of one problem: interquartile means over seeds with bootstrap intervals, best first."""
    groups: dict[tuple[str, int], dict[int, Row]] = {}
    for row in found:
        if row["method"] not in OWN_WEIGHTS:
            groups.setdefault((row["method"], row["max_plans"]), {}).setdefault(row["seed"], row)
    lines = []
    for (method, _), by_seed in groups.items():
        mine = list(by_seed.values())
        values = np.array([[row["search_accuracy"]] for row in mine])  # [S, 1]
        low, high = stratified_interval(values)
        middle, interval = iqm(values), "" if not low < high else f" [{100 * low:.1f}, {100 * high:.1f}]"
        seconds = [row["search_seconds"] for row in mine if row["search_seconds"] is not None]
        cells = [method, str(max(row["evaluations"] for row in mine)), str(len(mine))]
        cells += [f"{100 * middle:.1f}{interval}", f"{np.median(seconds):.0f}" if seconds else "–"]  # noqa: RUF001
        lines.append((-middle, f"| {' | '.join(cells)} |"))
    heads = ["method", "evaluations", "seeds", "accuracy on the reward images, %", "seconds of a search"]
    return (
        "\n".join([f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *(line for _, line in sorted(lines))]) + "\n"
    )


if __name__ == "__main__":
    with one_line_errors():
        main(tyro.cli(Config, prog="python -m benchmarks.compare.named", description=__doc__))
