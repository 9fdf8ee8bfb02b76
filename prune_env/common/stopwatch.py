"""The time that the stages of a long job take, of all its processes together."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .files import replacing


class Stopwatch:
    """Measures stages. Times add up, and in a file, if there is one, over all processes of a job.

    Example:
        >>> stopwatch = Stopwatch()
        >>> with stopwatch.stage("search"):
        ...     search()
        >>> str(stopwatch)
        'search 0.0'
    """

    def __init__(self) -> None:
        self.minutes: dict[str, float] = {}
        """Minutes of each stage."""
        self._file: Path | None = None

    def keep(self, file: Path) -> None:
        """Add the times to those in a file, which an earlier process may have written. A damaged file is replaced."""
        self._file = file
        with suppress(OSError, ValueError, TypeError, AttributeError):  # only times are lost
            earlier = {str(stage): float(minutes) for stage, minutes in json.loads(file.read_bytes()).items()}
            for stage, minutes in earlier.items():
                self.minutes[stage] = self.minutes.get(stage, 0.0) + minutes

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the block to a stage, also after Ctrl-C or an error."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.minutes[name] = self.minutes.get(name, 0.0) + (time.perf_counter() - start) / 60
            if self._file is not None and self._file.parent.is_dir():
                with replacing(self._file) as temporary:
                    temporary.write_text(json.dumps(self.minutes, indent=1) + "\n", encoding="utf-8")

    def __str__(self) -> str:
        return ", ".join(f"{stage} {minutes:.1f}" for stage, minutes in self.minutes.items())
