"""One row of numbers for every episode: metrics.jsonl, and TensorBoard where it is installed."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from .types import Metrics

FILE_NAME = "metrics.jsonl"
WALL_CLOCK = "seconds"
"""The only key that differs between two runs of the same seed."""


class MetricsLog:
    """Appends rows that the agent has lived, and no others.

    An agent that resumes at episode n keeps the rows up to n; what an interrupted run wrote after its last checkpoint
    goes, and is written again. A new agent that finds rows of another run moves them to metrics.previous.jsonl.
    """

    def __init__(self, directory: Path, episode: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / FILE_NAME
        if path.exists():
            if episode == 0:
                os.replace(path, path.with_name("metrics.previous.jsonl"))
            else:
                _cut(path, episode)
        self._file = path.open("a", encoding="utf-8", newline="\n")
        self._tensorboard = _tensorboard(directory, episode)

    def write(self, row: Metrics) -> None:
        """Appends a row; numbers that are not finite become null, as JSON has none."""
        finite = {key: _finite(value) for key, value in row.items()}
        self._file.write(json.dumps(finite, allow_nan=False) + "\n")
        self._file.flush()
        if self._tensorboard is not None:
            for key, value in finite.items():
                if key not in ("episode", WALL_CLOCK) and value is not None:
                    self._tensorboard.add_scalar(key if "/" in key else f"train/{key}", value, row["episode"])

    def sync(self) -> None:
        """Rows reach the disk. Called before a checkpoint that counts on them."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Nothing can be written afterwards."""
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()


def _cut(path: Path, episode: int) -> None:
    """Cuts the file before the first row that is damaged or later than `episode`."""
    keep = 0
    with path.open("rb") as file:
        for line in file:
            try:
                lived = line.endswith(b"\n") and json.loads(line)["episode"] <= episode
            except (ValueError, KeyError, TypeError):
                lived = False
            if not lived:
                break
            keep += len(line)
    os.truncate(path, keep)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _tensorboard(directory: Path, episode: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(directory), purge_step=episode + 1)
