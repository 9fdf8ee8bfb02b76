"""Log of training metrics: one row per episode in metrics.jsonl, and TensorBoard events if it is installed."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .interrupts import deferred_interrupt
from .types import MetricsRow

FILE_NAME = "metrics.jsonl"
WALL_CLOCK = "seconds"
"""The only key whose value differs between two runs of the same seed."""


class MetricsLog:
    """Writes the rows of one agent's lifetime.

    An agent that resumes at episode n keeps the rows up to n and drops later ones, which an interrupted run wrote after
    its last checkpoint. A new agent that finds rows of another run moves them to metrics.previous.jsonl. A Ctrl-C takes
    effect after a write, not within it.

    Args:
        directory: Where to write; it is created if it does not exist.
        episode: Number of episodes that the agent has played.
    """

    def __init__(self, directory: Path, episode: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / FILE_NAME
        if path.exists():
            if episode == 0:
                os.replace(path, path.with_name("metrics.previous.jsonl"))
            else:
                _truncate(path, episode)
        self._file = path.open("a", encoding="utf-8", newline="\n")
        self._tensorboard = _open_tensorboard(directory, episode)

    def write(self, rows: Sequence[MetricsRow]) -> None:
        """Append rows. Numbers that are not finite become null, because JSON cannot represent them."""
        with deferred_interrupt():
            for row in rows:
                finite = {key: _finite_or_none(value) for key, value in row.items()}
                self._file.write(json.dumps(finite, allow_nan=False) + "\n")
                self._file.flush()
                if self._tensorboard is not None:
                    for key, value in finite.items():
                        if key not in ("episode", WALL_CLOCK) and value is not None:
                            tag = key if "/" in key else f"train/{key}"
                            self._tensorboard.add_scalar(tag, value, row["episode"])

    def sync(self) -> None:
        """Force the rows to disk. Called before a checkpoint, so that no checkpoint is ahead of its log."""
        with deferred_interrupt():
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close all files."""
        with deferred_interrupt():
            self._file.close()
            if self._tensorboard is not None:
                self._tensorboard.close()


def _truncate(path: Path, episode: int) -> None:
    """Cut the file before the first row that is damaged or later than `episode`."""
    size = 0
    with path.open("rb") as file:
        for line in file:
            try:
                keep = line.endswith(b"\n") and json.loads(line)["episode"] <= episode
            except (ValueError, KeyError, TypeError):
                keep = False
            if not keep:
                break
            size += len(line)
    os.truncate(path, size)


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _open_tensorboard(directory: Path, episode: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(directory), purge_step=episode + 1)
