"""The folder of a run: its name, its lock and its settings."""

from __future__ import annotations

import glob
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..common.files import check_space, replacing, sweep
from ..common.locks import hold
from ..game.config import NOT_SET, differences
from ..game.env import FilterPruneEnv
from ..pruning.limits import LimitsConfig

SETTINGS = "config.json"
LOCK = ".lock"


LIMITS = [field.name for field in fields(LimitsConfig)]
"""Settings that may be mappings from patterns to values; such a mapping is compared as a whole."""


def open_folder(
    out: Path, name: str | None, stem: str, settings: Mapping[str, Any], resume: bool, free: Sequence[str] = ()
) -> Path:
    """Return the folder of a run: a new one, or an existing one to resume. It stays locked until this process ends.

    Args:
        out: Folder of all runs.
        name: Name of the run's folder; None for `stem` and a number: the next free one, or the latest to resume.
        stem: First part of the default name.
        settings: Settings of the run, kept in config.json.
        resume: Resume the run that is there.
        free: Settings, or groups of settings ("latency.timing"), that may differ from those of the run to resume.

    Raises:
        BlockingIOError: Another process runs in the folder; the message names it.
        FileExistsError: The folder exists and `resume` is False.
        FileNotFoundError: There is no run to resume.
        ValueError: The run was started with other settings, config.json is damaged, or `name` is not a plain folder
            name.
    """
    if name is not None and (name != Path(name).name or name in ("", "..")):
        raise ValueError(f"name {name!r} is not the name of a folder; use --out for its location")
    pattern = f"{glob.escape(stem)}-*"
    numbers = [int(last) for path in out.glob(pattern) if (last := path.name.removeprefix(f"{stem}-")).isdigit()]
    latest = max(numbers, default=0)
    folder = out / (name or f"{stem}-{latest if resume else latest + 1}")
    record = folder / SETTINGS
    text = json.dumps(settings, default=str, indent=1) + "\n"
    if resume and not record.is_file():
        raise FileNotFoundError(f"there is no run to resume: {record} does not exist")
    if not resume:
        try:
            folder.mkdir(parents=True)  # of two runs that start at the same time, only one gets it
        except FileExistsError as error:
            sweep(folder)
            if any(path.name != LOCK for path in folder.iterdir()):  # else the start of a run was interrupted
                raise FileExistsError(
                    f"{folder} exists already; add --resume to continue it, or choose another name"
                ) from error
    hold(folder / LOCK)
    for one in (folder, *(path for path in folder.iterdir() if path.is_dir())):
        sweep(one)
    if not resume:
        with replacing(record) as temporary:
            temporary.write_text(text, encoding="utf-8")
        return folder
    try:
        before, now = _flat(json.loads(record.read_text(encoding="utf-8"))), _flat(json.loads(text))
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{record} is damaged, so the settings of the run are not known; write them into it again to resume the "
            "run, or start a new one"
        ) from error
    changed = [one for one in differences(before, now) if not f"{one[0]}.".startswith(tuple(f"{it}." for it in free))]
    if changed:
        changes = "; ".join(f"{name}: {old!r} in the run, {new!r} now" for name, old, new in changed)
        older = " by an older version" if any(old is NOT_SET for _, old, _ in changed) else ""
        raise ValueError(
            f"{folder} was started{older} with other settings ({changes}); see {record}, and use the same settings, "
            "resume another run (--name), or start a new one"
        )
    with replacing(record) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return folder


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return settings by their full names: {"env": {"rounds": 3}} -> {"env.rounds": 3}."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        nested = isinstance(value, dict) and name not in LIMITS
        flat |= _flat(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return flat


def check_room(directory: Path, env: FilterPruneEnv, finalists: int, agent_bytes: int) -> None:
    """Check that the disk has room for about all that a run will write.

    Args:
        directory: The folder of the run.
        env: The environment.
        finalists: Number of finalists for each budget.
        agent_bytes: Size of all files of the agent.

    Raises:
        OSError: The disk has less room; the message names the folder and the sizes.
    """
    # Checkpoints of the distillations hold four times the weights; the network is saved twice.
    copies, size = 4 * (finalists + 2) + 2, float(agent_bytes)
    for budget in env.budgets:
        size += 4 * copies * env.problem.cost.params(budget.uniform())
    check_space(directory, size - sum(file.stat().st_size for file in directory.rglob("*") if file.is_file()))
