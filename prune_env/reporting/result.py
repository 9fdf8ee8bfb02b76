"""The result of a run: the measured networks, the saved network and the plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from ..common.files import replacing
from ..deploy import saved
from ..deploy.export import ExportError, to_onnx
from ..game.archive import Entry
from ..game.env import FilterPruneEnv
from ..game.targets import smallest_target
from ..pruning import Plan
from ..scoring.latency import latencies
from .plots import LayerRow, plot_layers, plot_learning, plot_tradeoff
from .summary import NetworkRow


@dataclass(frozen=True)
class Contestant:
    """A network of the final summary."""

    name: str
    network: nn.Module
    plan: Plan
    accuracy: float | None = None
    """Test accuracy of the network; None if it was not measured."""
    accuracy_before: float | None = None
    """Test accuracy before distillation; None if there was none."""


def network_rows(
    env: FilterPruneEnv, contestants: Sequence[Contestant], folders: Mapping[str, Path]
) -> list[NetworkRow]:
    """Measure the networks of the final summary: costs, file sizes and latencies, all timed in turn.

    A network whose plan equals that of an earlier one gets both names.

    Args:
        env: The environment of the search.
        contestants: The networks, the original one first.
        folders: Names of the networks whose ONNX file is kept as pruned.onnx, and the folder for it.
    """
    first = {contestant.plan: contestant.name for contestant in reversed(contestants)}
    networks = {contestant.name: contestant.network for contestant in contestants}
    with TemporaryDirectory() as scratch:
        onnx = _onnx_files(Path(scratch), env, networks)
        for name, folder in folders.items() if onnx else ():
            with replacing(folder / "pruned.onnx") as temporary:
                temporary.write_bytes(onnx[name].read_bytes())
        timed: dict[str, nn.Module | Path] = {**networks, **{f"{name} as ONNX": file for name, file in onnx.items()}}
        shape = env.problem.data.image_shape
        at_1, at_100 = (
            {name: timing.median_ms for name, timing in latencies(timed, shape, batch).items()} for batch in (1, 100)
        )
        return [_row(env, one, first[one.plan], onnx.get(one.name), (at_1, at_100)) for one in contestants]


def save_result(
    folder: Path,
    env: FilterPruneEnv,
    contestants: Sequence[Contestant],
    episodes: Sequence[Mapping[str, Any]],
    targets: Sequence[float | None],
    base: str | nn.Module,
) -> None:
    """Save the pruned network of a budget with its metrics and plots.

    Args:
        folder: Folder for the files.
        env: The environment of the search, with this budget only.
        contestants: The original network, the uniform one and the winner, with their accuracies.
        episodes: Rows of metrics.jsonl, for all targets of the search.
        targets: All targets of the search. A plan belongs to the smallest one that it meets.
        base: Registered name or import path of the original network, or the network.
    """
    original, uniform, winner = contestants
    metrics = {
        "original_accuracy": original.accuracy,
        "pruned_accuracy": winner.accuracy,
        "uniform_accuracy": uniform.accuracy,
        "pruned_accuracy_before_distillation": winner.accuracy_before,
        "uniform_accuracy_before_distillation": uniform.accuracy_before,
        **dict(zip(("macs_ratio", "params_ratio"), env.cost_ratios(winner.plan), strict=True)),
        "evaluated_plans": len(env.archive),
        "search_seconds": search_seconds(episodes),
    }
    saved.save_pruned(folder, winner.network, winner.plan, env.problem, base=base, metrics=metrics)
    fractions, target = [one for one in targets if one is not None], env.budget.target
    ratio = f"info/{env.config.cost}_ratio"
    own = [row for row in episodes if smallest_target(fractions, row[ratio]) == target]
    entries = [entry for entry in env.archive if smallest_target(fractions, env.archive.ratio(entry)) == target]
    save_plots(folder, env, own, entries, uniform.plan, winner.plan)


def search_seconds(episodes: Sequence[Mapping[str, Any]]) -> float:
    """Return the time of a search, without interruptions, from the rows of metrics.jsonl."""
    return float(sum(row.get("seconds", 0.0) for row in episodes))


def save_plots(
    folder: Path,
    env: FilterPruneEnv,
    episodes: Sequence[Mapping[str, Any]],
    entries: Sequence[Entry],
    uniform: Plan,
    winner: Plan,
) -> None:
    """Write learning.png, layers.png and tradeoff.png, with the accuracies of the search, before distillation.

    Without episodes there is no learning.png.

    Args:
        folder: Folder for the plots.
        env: The environment of the search, with one target.
        episodes: Rows of metrics.jsonl, for this target; none if only plans without a search were evaluated.
        entries: The evaluated plans, for this target.
        uniform: Plan of the uniform baseline.
        winner: Plan of the winning network.
    """

    def point(plan: Plan) -> tuple[float, float]:
        return env.budget.ratio(plan), env.evaluator.accuracy(plan)

    original = env.evaluator.original_accuracy
    best, rows = 0.0, []
    for row in episodes:
        greedy = (1 + row["eval/return"]) * original if "eval/return" in row else 0.0
        best = max(best, row.get("info/accuracy", 0.0), greedy if env.config.reward == "budget" else 0.0)
        rows.append({**row, "best_accuracy": best})
    if rows:
        plot_learning(folder / "learning.png", rows, references={"uniform L1": point(uniform)[1]})
    plot_tradeoff(
        folder / "tradeoff.png",
        [(env.archive.ratio(entry), entry.accuracy) for entry in entries],
        {"original": (1.0, original), "winner": point(winner), "uniform": point(uniform)},
        budget=env.budget.target,
        cost=env.budget.unit,
    )
    plot_layers(folder / "layers.png", _layer_rows(env, winner))


def _layer_rows(env: FilterPruneEnv, plan: Plan) -> list[LayerRow]:
    """Return filters and MACs of every layer that has an agent."""
    cost, plans = env.problem.cost, (env.problem.full_plan, plan)
    agents = {layer: group.name for group in env.groups for layer in group.layers}
    filters = [cost.layer_channels(plan)[1] for plan in plans]
    macs = [cost.layer_macs(plan) for plan in plans]
    return [
        LayerRow(layer, agents[layer], *(int(numbers[index]) for numbers in (*filters, *macs)))
        for index, layer in enumerate(cost.layers)
        if layer in agents
    ]


def _onnx_files(folder: Path, env: FilterPruneEnv, networks: Mapping[str, nn.Module]) -> dict[str, Path]:
    """Write every network as ONNX, checked on test images, and return the files by name.

    Print the reason and write nothing where packages are missing or a network cannot be exported.
    """
    files = {name: folder / f"{number}.onnx" for number, name in enumerate(networks)}
    data = env.problem.data
    images = data.normalise(data.test.first(32))
    try:
        for name, network in networks.items():
            to_onnx(network, files[name], images)
    except (ImportError, ExportError) as error:
        print(f"No ONNX file: {error}")
        return {}
    return files


def _row(
    env: FilterPruneEnv,
    one: Contestant,
    first: str,
    onnx: Path | None,
    timings: tuple[Mapping[str, float], Mapping[str, float]],
) -> NetworkRow:
    """Return the row of a network, given the first name of its plan and the times of batches of 1 and of 100."""
    at_1, at_100 = timings
    return NetworkRow(
        name=one.name if first == one.name else f"{one.name} = {first}",
        accuracy=one.accuracy,
        macs=env.problem.cost.macs(one.plan),
        params=env.problem.cost.params(one.plan),
        file_bytes=saved.file_bytes(one.network),
        latency_1_ms=at_1[one.name],
        latency_100_ms=at_100[one.name],
        accuracy_before=one.accuracy_before,
        onnx_bytes=None if onnx is None else onnx.stat().st_size,
        onnx_latency_1_ms=at_1.get(f"{one.name} as ONNX"),
        onnx_latency_100_ms=at_100.get(f"{one.name} as ONNX"),
    )
