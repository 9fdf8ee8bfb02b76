"""The folder of a run: which one, made with which settings, the networks measured, and the pictures in it."""

from __future__ import annotations

import glob
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from ..common.files import replacing
from ..deploy import saved as saving
from ..deploy.export import ExportError, to_onnx
from ..game.config import differences
from ..game.env import FilterPruneEnv
from ..pruning import Plan
from ..scoring.latency import latencies
from . import summary as report
from .plots import LayerRow, plot_layers, plot_learning, plot_tradeoff

SETTINGS = "config.json"


def directory(out: Path, name: str | None, stem: str, settings: Mapping[str, Any], resume: bool) -> Path:
    """out/<name>: a new folder, or with `resume` the one that is there, if it was begun with these settings.

    Without a name it is out/<stem>-<number>: the next free number, or the latest with `resume`. The settings are kept
    in config.json. Raises FileExistsError for a folder that is there without `resume`, FileNotFoundError for a run to
    resume that is not, ValueError for other settings or a name with folders in it.
    """
    if name is not None and (name != Path(name).name or name == ".."):
        raise ValueError(f"name {name!r} is no name of a folder; --out says where it goes")
    pattern = f"{glob.escape(stem)}-*"
    numbers = [int(last) for path in out.glob(pattern) if (last := path.name.removeprefix(f"{stem}-")).isdigit()]
    latest = max(numbers, default=0)
    folder = out / (name or f"{stem}-{latest if resume else latest + 1}")
    record = folder / SETTINGS
    text = json.dumps(settings, default=str, indent=1) + "\n"
    if not resume:
        try:
            folder.mkdir(parents=True)  # of two runs that start at once, one gets it
        except FileExistsError as error:
            raise FileExistsError(
                f"{folder} is there already; add --resume to go on with it, or choose another name"
            ) from error
        with replacing(record) as temporary:
            temporary.write_text(text, encoding="utf-8")
        return folder
    if not record.is_file():
        raise FileNotFoundError(f"there is no run to resume: {record} does not exist")
    before, now = _fields(json.loads(record.read_text(encoding="utf-8"))), _fields(json.loads(text))
    changes = [f"{name}: {was!r} in the run, {is_now!r} now" for name, was, is_now in differences(before, now)]
    if changes:
        raise ValueError(
            f"{folder} was begun with other settings ({'; '.join(changes)}); see {record}, and give the same ones, "
            "name another run (--name), or start a new one"
        )
    return folder


def _fields(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their full names: {"env": {"rounds": 3}} -> {"env.rounds": 3}."""
    fields: dict[str, Any] = {}
    for name, value in settings.items():
        fields |= _fields(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return fields


def figures(
    folder: Path,
    env: FilterPruneEnv,
    networks: Mapping[str, nn.Module],
    plans: Mapping[str, Plan],
    accuracies: Mapping[str, float],
    short_accuracies: Mapping[str, float],
    *,
    winner: str,
) -> list[report.NetworkRow]:
    """The rows of the final table: costs, files and latencies of the networks, all timed in turn.

    A network with the plan of one before it is named after both. The winner's ONNX file stays in the folder, as
    pruned.onnx.
    """
    first = {plan: name for name, plan in reversed(list(plans.items()))}
    with TemporaryDirectory() as scratch:
        onnx = _onnx_files(Path(scratch), env, networks)
        if onnx:
            with replacing(folder / "pruned.onnx") as temporary:
                temporary.write_bytes(onnx[winner].read_bytes())
        timed: dict[str, nn.Module | Path] = {**networks, **{f"{name} as ONNX": file for name, file in onnx.items()}}
        at_1, at_100 = (
            {name: timing.median_ms for name, timing in latencies(timed, env.data.image_shape, batch).items()}
            for batch in (1, 100)
        )
        return [
            report.NetworkRow(
                name=name if (same := first[plans[name]]) == name else f"{name} = {same}",
                accuracy=accuracies.get(name),
                macs=env.cost.macs(plans[name]),
                params=env.cost.params(plans[name]),
                file_bytes=saving.file_bytes(network),
                latency_1_ms=at_1[name],
                latency_100_ms=at_100[name],
                short_accuracy=short_accuracies.get(name),
                onnx_bytes=onnx[name].stat().st_size if name in onnx else None,
                onnx_latency_1_ms=at_1.get(f"{name} as ONNX"),
                onnx_latency_100_ms=at_100.get(f"{name} as ONNX"),
            )
            for name, network in networks.items()
        ]


def _onnx_files(folder: Path, env: FilterPruneEnv, networks: Mapping[str, nn.Module]) -> dict[str, Path]:
    """Writes every network as <folder>/<number>.onnx, checked on test images: name -> file.

    Says so and writes nothing where the packages are missing or a network cannot be exported.
    """
    files = {name: folder / f"{number}.onnx" for number, name in enumerate(networks)}
    images = env.data.normalise(env.data.test.images[:32])
    try:
        for name, network in networks.items():
            to_onnx(network, files[name], images)
    except (ImportError, ExportError) as error:
        print(f"No ONNX file: {error}")
        return {}
    return files


def unrounded_uniform(env: FilterPruneEnv) -> Plan:
    """The uniform plan of the same budget without `round_to`: beside the rounded one it shows what rounding gains."""
    return replace(env.budget, round_to=1).uniform()


def pictures(
    folder: Path, env: FilterPruneEnv, episodes: Sequence[Mapping[str, Any]], uniform: Plan, winner: Plan
) -> None:
    """learning.png, layers.png and tradeoff.png; accuracies are those of the search, before distillation.

    episodes  rows of metrics.jsonl
    """

    def point(plan: Plan) -> tuple[float, float]:
        return env.cost_ratios(plan)[0], env.evaluator.accuracy(plan)

    at = env.config.measure_at
    cut = "" if at == 1 else f", measured at {at:g} of the way"
    best, rows = 0.0, []
    for row in episodes:
        greedy = (1 + row["eval/return"]) * env.evaluator.original_accuracy if "eval/return" in row else 0.0
        best = max(best, row.get("info/accuracy", 0.0), greedy if env.config.reward == "budget" else 0.0)
        rows.append({**row, "best_accuracy": best})
    plot_learning(folder / "learning.png", rows, references={"uniform L1": point(uniform)[1]}, title=f"Learning{cut}")
    plot_tradeoff(
        folder / "tradeoff.png",
        [(entry.macs_ratio, entry.accuracy) for entry in env.archive],
        (1.0, env.evaluator.original_accuracy),
        point(winner),
        point(uniform),
        budget=env.config.target_macs,
        title=f"Every plan that was evaluated{cut}",
    )
    agents = {layer: group.name for group in env.groups for layer in group.layers}
    filters = [env.cost.layer_channels(plan)[1] for plan in (env.full_plan, winner)]
    macs = [env.cost.layer_macs(plan) for plan in (env.full_plan, winner)]
    layers = [
        LayerRow(layer, agents[layer], *(int(numbers[index]) for numbers in (*filters, *macs)))
        for index, layer in enumerate(env.cost.layers)
        if layer in agents
    ]
    plot_layers(folder / "layers.png", layers)
