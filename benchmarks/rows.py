"""The rows of a comparison: one JSON object a line, one line a run."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]

IDENTITY = ("problem", "target_macs", "budget", "finalisation", "method", "seed")
"""What makes a run the same run."""


def identity(row: Row) -> str:
    """Equal for rows of the same run, however their numbers were written."""
    return json.dumps([row[name] for name in IDENTITY], sort_keys=True)


def read(sources: Iterable[Path]) -> list[Row]:
    """All rows of files, and of the .jsonl files in folders; of a run that is met twice the first row.

    A last line that a killed process left unfinished is passed over. Raises FileNotFoundError for a missing source and
    ValueError for a line that is no row.
    """
    rows: dict[str, Row] = {}
    for source in sources:
        if not source.exists():
            raise FileNotFoundError(f"{source} does not exist; give files or folders that benchmarks.compare wrote")
        for file in sorted(source.glob("*.jsonl")) if source.is_dir() else [source]:
            lines = file.read_text().split("\n")
            for number, line in enumerate(lines[:-1], 1):
                try:
                    row = json.loads(line)
                    rows.setdefault(identity(row), row)
                except (ValueError, TypeError, KeyError) as error:
                    raise ValueError(f"{file}, line {number} is no row of benchmarks.compare: {error!r}") from error
    return list(rows.values())


def append(file: Path, row: Row) -> None:
    """Adds a row at once: what was written stays whole if the process is killed later."""
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(row) + "\n"
    unfinished = file.is_file() and file.stat().st_size > 0 and not file.read_bytes().endswith(b"\n")
    if unfinished:  # of a process that was killed while it wrote: the run is repeated, the piece goes
        file.write_bytes(file.read_bytes().rpartition(b"\n")[0] + b"\n")
    with file.open("a") as stream:
        stream.write(text)
