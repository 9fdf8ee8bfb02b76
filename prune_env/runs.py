"""The folder of a run: which one, made with which settings, and the pictures in it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import report
from .env import FilterPruneEnv
from .files import replacing
from .pruning import Plan

SETTINGS = "config.json"


def directory(out: Path, name: str | None, stem: str, settings: Mapping[str, Any], resume: bool) -> Path:
    """out/<name>: a new folder, or with `resume` the one that is there, if it was begun with these settings.

    Without a name it is out/<stem>-<number>: the next free number, or the latest with `resume`. The settings are kept
    in config.json. Raises FileExistsError for a run that is there without `resume`, ValueError for other settings.
    """
    numbers = [int(last) for path in out.glob(f"{stem}-*") if (last := path.name.removeprefix(f"{stem}-")).isdigit()]
    latest = max(numbers, default=0)
    folder = out / (name or f"{stem}-{latest if resume and latest else latest + 1}")
    record = folder / SETTINGS
    text = json.dumps(settings, default=str, indent=1) + "\n"
    if record.is_file():
        if not resume:
            raise FileExistsError(
                f"{folder} holds a run already; add --resume to go on with it, or choose another name"
            )
        before, now = json.loads(record.read_text(encoding="utf-8")), json.loads(text)
        if changed := sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key)):
            raise ValueError(
                f"{folder} was begun with other settings ({', '.join(changed)}); see {record}, and give "
                "the same ones or start a new run"
            )
        return folder
    with replacing(record) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return folder


def pictures(
    folder: Path, env: FilterPruneEnv, episodes: Sequence[Mapping[str, Any]], uniform: Plan, winner: Plan
) -> None:
    """learning.png, layers.png and tradeoff.png; accuracies are those of the search, before distillation.

    episodes  rows of metrics.jsonl
    """

    def point(plan: Plan) -> tuple[float, float]:
        return env.cost.macs(plan) / env.cost.macs(env.full_plan), env.evaluator.accuracy(plan)

    best, rows = 0.0, []
    for row in episodes:
        best = max(best, row.get("info/accuracy", 0.0))
        rows.append({**row, "best_accuracy": best})
    report.plot_learning(folder / "learning.png", rows, references={"uniform L1": point(uniform)[1]})
    report.plot_tradeoff(
        folder / "tradeoff.png",
        [(entry.macs_ratio, entry.accuracy) for entry in env.archive],
        (1.0, env.evaluator.original_accuracy),
        point(winner),
        point(uniform),
        budget=env.config.target_macs,
    )
    agents = {layer: group.agent_id for group in env.groups for layer in group.layers}
    filters = [env.cost.layer_channels(plan)[1] for plan in (env.full_plan, winner)]
    macs = [env.cost.layer_macs(plan) for plan in (env.full_plan, winner)]
    layers = [
        report.LayerFigures(layer, agents[layer], *(int(numbers[index]) for numbers in (*filters, *macs)))
        for index, layer in enumerate(env.cost.layers)
        if layer in agents
    ]
    report.plot_layers(folder / "layers.png", layers)
