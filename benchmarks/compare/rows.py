"""Rows of JSON, one line a run, that survive a kill; and what makes those of a comparison the same run."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prune_env import EnvConfig
from prune_env.training.distillation import DistillationConfig

Row = dict[str, Any]

IDENTITY = ("problem", "target_macs", "max_plans", "finalisation", "method", "seed")
"""What makes a run the same run."""


def identity(row: Row) -> str:
    """Equal for rows of the same run, however their numbers were written."""
    complete = row | settings(row)
    return canonical([complete[name] for name in IDENTITY])


def canonical(value: object) -> str:
    """JSON that does not tell 1 from 1.0, a tuple from a list, nor one order of names from another."""
    return json.dumps(json.loads(json.dumps(value), parse_int=float), sort_keys=True)


def settings(row: Row) -> Row:
    """Its problem and finalisation, with those settings at their defaults that came after the row was made."""
    game = asdict(EnvConfig()) | row["problem"]
    del game["target_macs"]  # has a place of its own in the row, as the seed has
    training = row["finalisation"]
    if training is not None:
        training = asdict(DistillationConfig()) | training
        del training["seed"]
    return {"problem": game, "finalisation": training}


def read(sources: Iterable[Path]) -> list[Row]:
    """All rows of files, and of the .jsonl files in folders; of a run that is met twice the first row.

    Raises FileNotFoundError for a missing source and ValueError for a line that is no row of benchmarks.compare.
    """
    rows: dict[str, Row] = {}
    for source in sources:
        if not source.exists():
            raise FileNotFoundError(f"{source} does not exist; give files or folders that benchmarks.compare wrote")
        for file in sorted(source.glob("*.jsonl")) if source.is_dir() else [source]:
            for number, line in enumerate(_lines(file), 1):
                try:
                    row = json.loads(line)
                    rows.setdefault(identity(row), row)
                except (ValueError, TypeError, KeyError) as error:
                    reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
                    raise ValueError(
                        f"{file}, line {number} is no row of benchmarks.compare ({reason}); give the folder that it "
                        "wrote to (its --out)"
                    ) from error
    return list(rows.values())


def read_file(file: Path) -> list[Row]:
    """The rows of one file of any benchmark; none if it is not there yet."""
    return [json.loads(line) for line in _lines(file)] if file.is_file() else []


def append(file: Path, row: Row) -> None:
    """Adds a row at once: what was written stays whole if the process is killed later."""
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(row) + "\n"
    unfinished = file.is_file() and file.stat().st_size > 0 and not file.read_bytes().endswith(b"\n")
    if unfinished:  # of a process that was killed while it wrote: the run is repeated, the piece goes
        file.write_bytes(file.read_bytes().rpartition(b"\n")[0] + b"\n")
    with file.open("a") as stream:
        stream.write(text)


def _lines(file: Path) -> list[str]:
    """Those that were finished; a last one that a killed process left unfinished is passed over."""
    return file.read_text().split("\n")[:-1]
