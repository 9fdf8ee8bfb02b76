"""Log of training metrics: one row per episode in metrics.jsonl, and TensorBoard events if it is installed."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import socket
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .files import write_beside, write_error
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
    found = path.read_bytes() if path.is_file() else b""
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
    os.replace(write_beside(path, lambda file: file.write(text), "the file is unchanged"), path)


class MetricsLog:
    """Writes the rows of one agent. A Ctrl-C takes effect after a write, not within it.

    Args:
        directory: Where to write, after `restore`.
        episode: Number of episodes that the agent has played.

    Raises:
        OSError: A file cannot be written.
    """

    def __init__(self, directory: Path, episode: int) -> None:
        self._rows = _File(directory / FILE_NAME)
        self._events = _Events(directory, episode) if find_spec("tensorboard") is not None else None

    def write(self, rows: Sequence[MetricsRow]) -> None:
        """Append rows.

        Raises:
            OSError: A file cannot be written; metrics.jsonl has the same rows as before.
        """
        with deferred_interrupt():
            if self._events is not None:  # first, because a resumed run replaces events of rows that are missing
                self._events.write(rows)
            self._rows.append("".join(f"{to_line(row)}\n" for row in rows).encode())

    def sync(self) -> None:
        """Force the rows to disk. Called before a checkpoint, so that no checkpoint is ahead of its log."""
        with deferred_interrupt():
            self._rows.sync()

    def close(self) -> None:
        """Close all files."""
        with deferred_interrupt():
            self._rows.close()
            if self._events is not None:
                self._events.close()


class _File:
    """A file to which contents are appended wholly or not at all."""

    def __init__(self, path: Path) -> None:
        if path.is_symlink():  # a link in a received folder could lead to a file of the user
            raise FileExistsError(errno.EEXIST, f"{path} is a link, which is not followed; put the file itself there")
        self._path = path
        self._file = path.open("ab", buffering=0)

    def append(self, content: bytes) -> None:
        size = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            os.ftruncate(self._file.fileno(), size)
            raise write_error(self._path, error, "its earlier rows are unchanged") from error

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class _Events:
    """A file of TensorBoard events. Unlike a `SummaryWriter`, it has no thread whose errors nobody catches."""

    def __init__(self, directory: Path, episode: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        self._file = _File(
            directory / f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        )
        start = SessionLog(status=SessionLog.START)  # TensorBoard drops the events of earlier files from this step on
        self._add([Event(file_version="brain.Event:2"), Event(step=episode + 1, session_log=start)])

    def write(self, rows: Sequence[MetricsRow]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._add(
            [
                Event(step=row["episode"], summary=Summary(value=[Summary.Value(tag=_tag(key), simple_value=value)]))
                for row in rows
                for key, value in row.items()
                if key not in ("episode", WALL_CLOCK) and _finite_or_none(value) is not None
            ]
        )

    def _add(self, events: Sequence[Any]) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        records = io.BytesIO()
        for event in events:
            event.wall_time = time.time()
            RecordWriter(records).write(event.SerializeToString())
        self._file.append(records.getvalue())

    def close(self) -> None:
        self._file.close()


def _tag(key: str) -> str:
    return key if "/" in key else f"train/{key}"


def _is_row(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
