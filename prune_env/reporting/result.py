"""The result of a run: the measured networks, the saved network and the plots."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from ..common.files import replacing
from ..data import DataSplits
from ..deploy import saved
from ..deploy.export import ExportError, to_onnx
from ..deploy.layer_times import LayerTiming
from ..deploy.quantise import CHECK_IMAGES, calibration_images, quantise_onnx
from ..deploy.weights import file_bytes
from ..game.archive import Entry
from ..game.env import FilterPruneEnv
from ..game.targets import smallest_target
from ..pruning import Plan
from ..scoring.latency import latencies
from ..scoring.metric import onnx_accuracy
from .plots import LayerRow, plot_layers, plot_learning, plot_tradeoff
from .summary import INT8, ONNX, NetworkRow

BATCH = 100
"""The larger batch size of latencies."""
PIXELS = 2**21
"""Pixels of the larger batch, at most; larger images make batches of a power of two: 32 of 224 pixels."""
KEPT = {"ONNX": "pruned.onnx", "int8": "pruned-int8.onnx"}
"""Names of the ONNX files of a pruned network."""


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
    env: FilterPruneEnv,
    contestants: Sequence[Contestant],
    folders: Mapping[str, Path],
    timing: LayerTiming | None = None,
    *,
    quantise: bool = False,
) -> list[NetworkRow]:
    """Measure the networks of the final summary: costs, file sizes and latencies, all timed in turn.

    A network whose plan equals that of an earlier one gets both names. The test accuracy of an int8 file is measured if
    that of its network was.

    Args:
        env: The environment of the search.
        contestants: The networks, the original one first.
        folders: Names of the networks whose ONNX files are kept as pruned.onnx and pruned-int8.onnx, and the folder for
            them.
        timing: How latencies are measured, at batch sizes of 1 and of `timing.batch_size`. If that is 1, the other one
            is 100, or fewer where images are large.
        quantise: Whether to measure int8 files, too.
    """
    first = {contestant.plan: contestant.name for contestant in reversed(contestants)}
    networks = {contestant.name: contestant.network for contestant in contestants}
    shape, timing = env.problem.data.image_shape, timing or LayerTiming()
    large = timing.batch_size if timing.batch_size > 1 else _large_batch(shape[1] * shape[2])
    with TemporaryDirectory() as scratch:
        files = _onnx_files(Path(scratch), env.problem.data, networks, quantise)
        for (name, folder), (kind, file) in itertools.product(folders.items(), KEPT.items()):
            if made := files.get(f"{name} as {kind}"):
                with replacing(folder / file) as temporary:
                    temporary.write_bytes(made.read_bytes())
        at_1, at_large = (
            {name: one.median_ms for name, one in latencies({**networks, **files}, shape, batch, timing.timing).items()}
            for batch in (1, large)
        )
        rows = [_row(env, one, first[one.plan], files, (at_1, at_large)) for one in contestants]
    return [replace(row, batch_size=large) for row in rows]


def _large_batch(pixels: int) -> int:
    """Return the larger batch size for images with so many pixels."""
    fitting = max(1, PIXELS // pixels)
    return BATCH if fitting >= BATCH else 2 ** (fitting.bit_length() - 1)


def save_result(
    folder: Path,
    env: FilterPruneEnv,
    contestants: Mapping[str, Contestant],
    episodes: Sequence[Mapping[str, Any]],
    targets: Sequence[float | None],
    base: str | nn.Module,
) -> None:
    """Save the pruned network of a budget with its metrics and plots.

    Args:
        folder: Folder for the files.
        env: The environment of the search, with this budget only.
        contestants: The networks "original", "uniform" and "pruned" (the winner).
        episodes: Rows of metrics.jsonl, for all targets of the search.
        targets: All targets of the search. A plan belongs to the smallest one that it meets.
        base: Registered name or import path of the original network, or the network.
    """
    winner, uniform = contestants["pruned"], contestants["uniform"]
    metrics = {
        **{f"{name}_accuracy": one.accuracy for name, one in contestants.items()},
        "pruned_accuracy_before_distillation": winner.accuracy_before,
        "uniform_accuracy_before_distillation": uniform.accuracy_before,
        **dict(zip(("macs_ratio", "params_ratio"), env.cost_ratios(winner.plan), strict=True)),
        f"{env.config.cost}_ratio": env.budget.ratio(winner.plan),
        "evaluated_plans": len(env.archive),
        "search_seconds": search_seconds(episodes),
    }
    saved.save_pruned(folder, winner.network, winner.plan, env.problem, base=base, metrics=metrics)
    fractions, target = [one for one in targets if one is not None], env.budget.target
    ratio = f"info/{env.config.cost}_ratio"
    own = [row for row in episodes if smallest_target(fractions, row[ratio]) == target]
    entries = [entry for entry in env.archive if smallest_target(fractions, env.archive.ratio(entry)) == target]
    save_plots(folder, env, own, entries, uniform.plan, winner.plan)


def add_measurements(folder: Path, rows: Mapping[str, NetworkRow]) -> None:
    """Add sizes of files and latencies to the metrics of a saved network.

    Args:
        folder: Folder of `save_result`.
        rows: The rows of "original", "uniform" and "pruned".
    """
    names = ("latency_1_ms", "latency_batch_ms", *ONNX, "int8_accuracy", *INT8, "batch_size")
    values = {f"{name}_{field}": getattr(row, field) for name, row in rows.items() for field in names}
    saved.add_metrics(folder, {name: value for name, value in values.items() if value is not None})


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


def _onnx_files(folder: Path, data: DataSplits, networks: Mapping[str, nn.Module], quantise: bool) -> dict[str, Path]:
    """Write every network as ONNX, and as int8 with `quantise`; return the files as "NAME as ONNX" and "NAME as int8".

    Where packages are missing or a network cannot be exported, print the reason and return no files of that kind.
    """
    images = calibration_images(data)
    float32 = {f"{name} as ONNX": folder / f"{number}.onnx" for number, name in enumerate(networks)}
    int8 = {f"{name} as int8": folder / f"{number}-int8.onnx" for number, name in enumerate(networks)}
    try:
        for network, file in zip(networks.values(), float32.values(), strict=True):
            to_onnx(network, file, images[:CHECK_IMAGES])
    except (ImportError, ExportError) as error:
        print(f"No ONNX file: {error}")
        return {}
    if not quantise:
        return float32
    try:
        for file, out in zip(float32.values(), int8.values(), strict=True):
            quantise_onnx(file, images, out)
    except (ImportError, ExportError) as error:
        print(f"No int8 file: {error}")
        return float32
    return float32 | int8


def _row(
    env: FilterPruneEnv,
    one: Contestant,
    first: str,
    files: Mapping[str, Path],
    timings: tuple[Mapping[str, float], Mapping[str, float]],
) -> NetworkRow:
    """Return the row of a network, given the first name of its plan, all files, and times of both batch sizes."""
    data, (at_1, at_large) = env.problem.data, timings
    values: dict[str, Any] = {}
    for kind, fields in (("ONNX", ONNX), ("int8", INT8)):
        if file := files.get(name := f"{one.name} as {kind}"):
            values |= dict(zip(fields, (file.stat().st_size, at_1[name], at_large[name]), strict=True))
            if kind == "int8" and one.accuracy is not None:
                values["int8_accuracy"] = onnx_accuracy(file, data, data.test)
    return NetworkRow(
        name=one.name if first == one.name else f"{one.name} = {first}",
        accuracy=one.accuracy,
        macs=env.problem.cost.macs(one.plan),
        params=env.problem.cost.params(one.plan),
        file_bytes=file_bytes(one.network),
        latency_1_ms=at_1[one.name],
        latency_batch_ms=at_large[one.name],
        accuracy_before=one.accuracy_before,
        **values,
    )
