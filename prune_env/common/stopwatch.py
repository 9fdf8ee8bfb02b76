"""The time that the stages of a long job take, of all its processes together."""

from __future__ import annotations

import json
import time
from pathlib import Path

from .files import replacing


class Stopwatch:
    """Measures one stage after the other, from its construction on. Times add up in a file, if there is one.

    Example:
        >>> stopwatch = Stopwatch()
        >>> stopwatch.lap("search")
        >>> str(stopwatch)
        'search 0.0'
    """

    def __init__(self) -> None:
        self.minutes: dict[str, float] = {}
        """Minutes of each stage."""
        self._start = time.perf_counter()
        self._file: Path | None = None

    def keep(self, file: Path) -> None:
        """Add the times to those in a file, which an earlier process may have written; a damaged file starts anew."""
        self._file = file
        try:
            earlier = {str(stage): float(minutes) for stage, minutes in json.loads(file.read_bytes()).items()}
        except (OSError, ValueError, TypeError, AttributeError):  # only times are lost
            earlier = {}
        self.minutes = {
            stage: earlier.get(stage, 0.0) + self.minutes.get(stage, 0.0) for stage in earlier | self.minutes
        }

    def lap(self, stage: str) -> None:
        """End a stage and begin the next one."""
        now = time.perf_counter()
        self.minutes[stage] = self.minutes.get(stage, 0.0) + (now - self._start) / 60
        self._start = now
        if self._file is not None:
            with replacing(self._file) as temporary:
                temporary.write_text(json.dumps(self.minutes, indent=1) + "\n", encoding="utf-8")

    def __str__(self) -> str:
        return ", ".join(f"{stage} {minutes:.1f}" for stage, minutes in self.minutes.items())
