"""Make tables and plots of a comparison: PNG, CSV and a report.html that needs no other file.

    python -m benchmarks.compare.report runs/compare

ROWS are files or folders that benchmarks.compare wrote, possibly on several machines. Rows can be compared if they have
the same problem, number of plans and finalisation; each such comparison has its own tables and plots.
"""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import math
import textwrap
from dataclasses import dataclass
from pathlib import Path

import tyro

from prune_env.common.command import check_writable, one_line_errors, require_packages
from prune_env.common.figure_style import INK
from prune_env.common.files import replacing
from prune_env.common.settings import Settings

from . import rows
from .model import OWN_WEIGHTS, REFERENCES, Comparison, Line, comparisons
from .rows import Row
from .statistics import RESAMPLES, Difference, Mean


@dataclass(frozen=True)
class Config(Settings):
    rows: tyro.conf.Positional[tuple[Path, ...]]
    """Files or folders that benchmarks.compare wrote."""
    out: Path | None = None
    """Folder of the report; by default `report` in the folder of the first rows."""


def write(found: list[Row], out: Path) -> Path:
    """Write tables and plots to a folder.

    Args:
        found: The rows.
        out: The folder.

    Returns:
        The path of report.html.

    Raises:
        ValueError: There are no rows.
    """
    if not found:
        raise ValueError("there are no rows; run benchmarks.compare first")
    out.mkdir(parents=True, exist_ok=True)
    body, table = [], [HEADINGS]
    for number, comparison in enumerate(comparisons(found), 1):
        body.append(f"<h2>{html.escape(f'{comparison.title}: {comparison.label}')}</h2>{_settings(comparison)}")
        several = len(comparison.targets) > 1
        for target in [*comparison.targets, *[None] * several]:
            name = "All targets" if target is None else f"{100 * target:g} % of the MACs{_optimum(comparison, target)}"
            lines = comparison.lines(target)
            body.append(f"<h3>{name}</h3>{_html_table(comparison, lines)}")
            table += [_csv_line(comparison, name, line) for line in lines]
        body.append(_correlations(comparison))
        for name, figure in comparison.plots().items():
            title = "\n".join(textwrap.wrap(comparison.title, int(12 * figure.get_figwidth())))
            figure.suptitle(title, x=0.01, ha="left", color=INK, fontsize=9)
            image = io.BytesIO()
            figure.savefig(image, format="png", facecolor="white")
            with replacing(out / f"{number}-{comparison.network}-{name}.png") as temporary:
                temporary.write_bytes(image.getvalue())
            source = base64.b64encode(image.getvalue()).decode()
            body.append(f'<h3>{TITLES[name]}</h3><img alt="{TITLES[name]}" src="data:image/png;base64,{source}">')
    with replacing(out / "report.csv") as temporary, temporary.open("w", newline="") as stream:
        csv.writer(stream).writerows(table)
    page = out / "report.html"
    with replacing(page) as temporary:
        temporary.write_text(PAGE.replace("BODY", "\n".join(body)))
    return page


def text_table(comparison: Comparison, target: float | None) -> str:
    """Return the table for a terminal."""
    head = f"{'method':<12}{'seeds':>5}{'plans':>6}{'search':>8}{'result, %':>11}{'95 % interval':>17}{'rank':>6}"
    head += "".join(f"{f'minus {name} [95 %], p':>33}" for name in REFERENCES) + f"{'seconds':>9}"
    lines = [head, "-" * len(head)]
    for line in comparison.lines(target):
        text = f"{line.method:<12}{line.seeds:>5}{line.evaluations:>6.0f}{100 * line.search:>8.2f}"
        text += f"{100 * line.result.value:>11.2f}{_bounds(line.result):>17}{_number(line.rank, 1):>6}"
        text += "".join(f"{_difference(line.against[name]):>33}" for name in REFERENCES)
        lines.append(text + f"{_number(line.search_seconds, 1):>9}")
    return "\n".join(lines)


def main(config: Config) -> None:
    """Write the report and print its tables.

    Raises:
        ValueError: There are no rows.
    """
    require_packages(["matplotlib", "scipy"], "the report", "train")
    if not config.rows:
        raise ValueError("give files or folders that benchmarks.compare wrote, such as runs/compare")
    found = rows.read(config.rows)
    if not found:
        places = ", ".join(map(str, config.rows))
        raise ValueError(f"no rows of benchmarks.compare are in {places}; give the folder that it wrote to (its --out)")
    first = config.rows[0]
    out = config.out or (first if first.is_dir() else first.parent) / "report"
    check_writable("out", out, folder=True)
    page = write(found, out)
    for comparison in comparisons(found):
        for target in comparison.targets:
            about = f"{comparison.title}, {100 * target:g} % of the MACs{_optimum(comparison, target)}"
            print(f"\n{about}: {comparison.label}\n{text_table(comparison, target)}")
            if not all(comparison.compares(row["method"]) for row in comparison.of(target)):
                print(OWN)
    print(f"\n{page}")


HEADINGS = [
    "problem",
    "result is",
    "target",
    "method",
    "seeds",
    "plans evaluated",
    "search reward",
    "all reward images, as cut",
    "test after short distillation",
    "result",
    "low",
    "high",
    "rank",
    *(f"{name} {number}" for name in REFERENCES for number in ("difference", "low", "high", "p", "pairs")),
    "search seconds",
    "finalise seconds",
]
"""Columns of report.csv."""
TITLES = {
    "methods": "Methods: mean, 95 % interval and single seeds",
    "front": "Accuracy against MACs",
    "curves": "Search: best reward over evaluations, mean and 95 % interval",
    "layers": "Share of filters kept, mean over seeds",
    "correlation": "Accuracy in the search and after distillation",
}
NOTES = """<p>Accuracies in %, differences in points. <b>Result</b> is {label}. Intervals: percentile bootstrap of the
mean over seeds, 95 %, {resamples} resamples; with fewer than ten seeds they are too narrow. Differences are paired by
seed (and target); p is that of the two-sided paired t-test, not corrected for the number of comparisons. Coloured: the
interval of the difference excludes zero. Rank: mean over seeds; the best rank is 1. Search: best accuracy on the images
of the reward split that the search uses. As cut: accuracy of the winner on the whole split, without any training.
Seconds: wall time per run on its machine, without runs that used a cache. On a CPU, the first finalisation of a seed in
a process computes the teacher's outputs, and the others reuse them. MACs: multiply-accumulates of convolutional and
linear layers for one input. {own}</p>"""
OWN = """amc_ls searches with weights reconstructed by least squares, so its search accuracies belong to other networks.
Like all methods it is finalised from the original weights; without finalisation it has no rank."""
PAGE = """<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>Search methods compared</title><style>
body{font:15px/1.45 system-ui,sans-serif;color:#222;max-width:1150px;margin:2em auto;padding:0 1em}
table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums;display:block;overflow-x:auto}
th,td{padding:.25em .6em;text-align:right;border-bottom:1px solid #ddd;white-space:nowrap}
th:first-child,td:first-child{text-align:left}th{vertical-align:bottom;border-bottom:1px solid #767676}
.more{color:#00684c;font-weight:600}.less{color:#a33a00;font-weight:600}img{max-width:100%;height:auto}
p{max-width:75em}summary{cursor:pointer}code{white-space:pre-wrap}</style>
<h1>Search methods compared</h1>
BODY
</html>
"""


def _html_table(comparison: Comparison, lines: list[Line]) -> str:
    finalised = comparison.finalised
    heads = ["method", "seeds", "plans", "search"]
    heads += ["all images,<br>as cut", "test, short<br>distillation"] if finalised else []
    heads += ["result", "95 % interval", "rank", *(f"minus {name}<br>[interval], p" for name in REFERENCES)]
    heads += ["search, s", *["finalise, s"] * finalised]
    parts = ["<table><tr>", *(f"<th>{head}</th>" for head in heads), "</tr>"]
    for line in lines:
        cells = [html.escape(line.method), str(line.seeds), f"{line.evaluations:.0f}", _percent(line.search)]
        cells += [_percent(line.rescored), _percent(line.short)] if finalised else []
        cells += [f"<b>{_percent(line.result.value)}</b>", _bounds(line.result), _number(line.rank, 1)]
        for name in REFERENCES:
            found = line.against[name]
            kind = "" if found is None else "more" if found.low > 0 else "less" if found.high < 0 else ""
            cells.append(f'<span class="{kind}">{_difference(found)}</span>')
        cells += [_number(line.search_seconds, 1), *[_number(line.finalise_seconds, 1)] * finalised]
        parts += ["<tr>", *(f"<td>{cell}</td>" for cell in cells), "</tr>"]
    return "".join([*parts, "</table>"])


def _csv_line(comparison: Comparison, target: str, line: Line) -> list[object]:
    numbers: list[object] = [line.search, line.rescored, line.short, line.result.value, line.result.low]
    cells = [comparison.title, comparison.label, target, line.method, line.seeds, line.evaluations]
    cells += [*numbers, line.result.high, line.rank]
    for name in REFERENCES:
        found = line.against[name]
        cells += [""] * 5 if found is None else [found.value, found.low, found.high, found.p, found.pairs]
    return [*cells, line.search_seconds, line.finalise_seconds]


def _optimum(comparison: Comparison, target: float) -> str:
    """Describe the best accuracy that any plan has, if it is known."""
    optimum = comparison.of(target)[0]["optimum"]
    return "" if optimum is None else f", at most {_percent(optimum)} % of the reward images"


def _settings(comparison: Comparison) -> str:
    first = comparison.rows[0]
    facts_of = {name: first[name] for name in ("problem", "max_plans", "finalisation")}
    for stage in ("search_machine", "finalise_machine"):
        facts_of[stage] = sorted({json.dumps(row[stage]) for row in comparison.rows if stage in row})
    facts = html.escape(json.dumps(facts_of, indent=1))
    methods = {row["method"] for row in comparison.rows}
    own = OWN if methods & set(OWN_WEIGHTS) else ""
    label = comparison.label.removesuffix(", %").lower()
    notes = NOTES.format(label=label, resamples=f"{RESAMPLES:,}", own=own)
    return f"{notes}<details><summary>Settings, machines, versions</summary><code>{facts}</code></details>"


def _correlations(comparison: Comparison) -> str:
    cells = [
        f"<tr><td>{100 * target:g} %</td><td style='text-align:left'>{name}</td><td>{pairs}</td><td>{_number(tau, 2)}"
        f"</td><td>{_number(p, 3)}</td></tr>"
        for target in comparison.targets
        for name, pairs, tau, p in comparison.correlations(target)
    ]
    if not cells:
        return ""
    head = "<tr><th>MACs</th><th>Kendall's rank correlation of</th><th>pairs</th><th>tau</th><th>p</th></tr>"
    return f"<h3>Rank correlation</h3><table>{head}{''.join(cells)}</table>"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}"


def _number(value: float, decimals: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{decimals}f}"  # noqa: RUF001


def _bounds(found: Mean) -> str:
    return "" if math.isnan(found.low) else f"[{100 * found.low:.2f}, {100 * found.high:.2f}]"


def _difference(found: Difference | None) -> str:
    if found is None:
        return ""
    p = "" if math.isnan(found.p) else f", {found.p:.3f}" if found.p >= 0.001 else ", <0.001"
    bounds = "" if math.isnan(found.low) else f" [{100 * found.low:+.2f}, {100 * found.high:+.2f}]"
    return f"{100 * found.value:+.2f}{bounds}{p}"


if __name__ == "__main__":
    with one_line_errors():
        main(tyro.cli(Config, prog="python -m benchmarks.compare.report", description=__doc__))
