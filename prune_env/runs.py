"""The folder of a run: which one, made with which settings, and the pictures in it."""

from __future__ import annotations

import glob
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
    in config.json. Raises FileExistsError for a folder that is there without `resume`, FileNotFoundError for a run to
    resume that is not, ValueError for other settings.
    """
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
    before, now = json.loads(record.read_text(encoding="utf-8")), json.loads(text)
    if changed := sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key)):
        raise ValueError(
            f"{folder} was begun with other settings ({', '.join(changed)}); see {record}, and give the same ones or "
            "start a new run"
        )
    return folder


def pictures(
    folder: Path, env: FilterPruneEnv, episodes: Sequence[Mapping[str, Any]], uniform: Plan, winner: Plan
) -> None:
    """learning.png, layers.png and tradeoff.png; accuracies are those of the search, before distillation.

    episodes  rows of metrics.jsonl
    """

    def point(plan: Plan) -> tuple[float, float]:
        return env.cost_ratios(plan)[0], env.evaluator.accuracy(plan)

    best, rows = 0.0, []
    for row in episodes:
        greedy = (1 + row["eval/return"]) * env.evaluator.original_accuracy if "eval/return" in row else 0.0
        best = max(best, row.get("info/accuracy", 0.0), greedy if env.config.reward == "budget" else 0.0)
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
