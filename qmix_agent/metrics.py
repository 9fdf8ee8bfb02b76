"""Log of training metrics: one row per episode in metrics.jsonl, and TensorBoard events if it is installed."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from .checkpoint import write_error
from .interrupts import deferred_interrupt
from .types import MetricsRow

FILE_NAME = "metrics.jsonl"
WALL_CLOCK = "seconds"
"""The only key whose value differs between two runs of the same seed."""


class LogError(ValueError):
    """The log in a directory belongs to another run than the agent."""


def to_line(row: MetricsRow) -> str:
    """Return a row as a line of JSON. Numbers that are not finite become null, because JSON cannot represent them."""
    return json.dumps({key: _finite_or_none(value) for key, value in row.items()}, allow_nan=False)


def restore(directory: Path, lines: Sequence[str]) -> None:
    """Make metrics.jsonl the log of an agent, whether it is missing, damaged, or has rows after the last checkpoint.

    A new agent that finds rows of another run moves them to metrics.previous.jsonl.

    Args:
        directory: Where the log is; it is created if it does not exist.
        lines: The rows of the agent's lifetime, from `to_line`.

    Raises:
        LogError: The file is the log of another run: it has rows, but none of them is of this agent.
        OSError: The file cannot be written; it is unchanged.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / FILE_NAME
    found = path.read_bytes() if path.exists() else b""
    if not lines:
        if found:
            os.replace(path, path.with_name("metrics.previous.jsonl"))
        return
    text = "".join(f"{line}\n" for line in lines).encode()
    if found == text:
        return
    rows = {row for row in found.split(b"\n") if _is_row(row)}
    if rows and rows.isdisjoint(line.encode() for line in lines):  # equal runs differ in their times
        raise LogError(
            f"{path} and the checkpoint are of different runs: no row of the file is of the agent; put back the right "
            f"one, or move {FILE_NAME} away, and it is made again from the checkpoint"
        )
    temporary = path.with_name(f".{FILE_NAME}.writing")
    try:
        with temporary.open("wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise write_error(path, error, "the file is unchanged") from error
    finally:
        temporary.unlink(missing_ok=True)


class MetricsLog:
    """Writes the rows of one agent. A Ctrl-C takes effect after a write, not within it.

    Args:
        directory: Where to write, after `restore`.
        episode: Number of episodes that the agent has played.
    """

    def __init__(self, directory: Path, episode: int) -> None:
        self._path = directory / FILE_NAME
        self._file = self._path.open("ab", buffering=0)
        self._tensorboard = _open_tensorboard(directory, episode)

    def write(self, rows: Sequence[MetricsRow]) -> None:
        """Append rows.

        Raises:
            OSError: A file cannot be written; metrics.jsonl has the same rows as before.
        """
        with deferred_interrupt():
            size = os.fstat(self._file.fileno()).st_size
            text = "".join(f"{to_line(row)}\n" for row in rows).encode()
            try:
                if self._file.write(text) != len(text):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                self._add_events(rows)
            except OSError as error:
                os.ftruncate(self._file.fileno(), size)
                raise write_error(self._path, error, "its earlier rows are unchanged") from error

    def _add_events(self, rows: Sequence[MetricsRow]) -> None:
        if self._tensorboard is None:
            return
        for row in rows:
            for key, value in row.items():
                if key not in ("episode", WALL_CLOCK) and _finite_or_none(value) is not None:
                    tag = key if "/" in key else f"train/{key}"
                    self._tensorboard.add_scalar(tag, value, row["episode"])

    def sync(self) -> None:
        """Force the rows to disk. Called before a checkpoint, so that no checkpoint is ahead of its log."""
        with deferred_interrupt():
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close all files."""
        with deferred_interrupt():
            self._file.close()
            if self._tensorboard is not None:
                with suppress(OSError):  # an error of a full disk was raised by `write`, or only costs events
                    self._tensorboard.close()


def _is_row(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _open_tensorboard(directory: Path, episode: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(directory), purge_step=episode + 1)
