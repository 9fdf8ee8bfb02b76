"""The time that the stages of a long job take."""

from __future__ import annotations

import time


class Stopwatch:
    """Measures one stage after the other, from its construction on.

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

    def lap(self, stage: str) -> None:
        """End a stage and begin the next one."""
        now = time.perf_counter()
        self.minutes[stage] = (now - self._start) / 60
        self._start = now

    def __str__(self) -> str:
        return ", ".join(f"{stage} {minutes:.1f}" for stage, minutes in self.minutes.items())
