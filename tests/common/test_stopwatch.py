"""The times of stages add up over the processes of a job."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest

from prune_env.common.stopwatch import Stopwatch


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A fake clock in seconds."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    return now


def test_stages_add_up_also_after_errors(clock: list[float]) -> None:
    stopwatch = Stopwatch()
    for seconds, stage in ((60.0, "search"), (150.0, "test"), (30.0, "search")):
        with suppress(KeyboardInterrupt), stopwatch.stage(stage):
            clock[0] += seconds
            raise KeyboardInterrupt
    assert stopwatch.minutes == {"search": 1.5, "test": 2.5}
    assert str(stopwatch) == "search 1.5, test 2.5"


@pytest.mark.parametrize("damage", [None, "[1]", "{", '{"search": "x"}'])
def test_later_processes_add_to_a_file(clock: list[float], tmp_path: Path, damage: str | None) -> None:
    file = tmp_path / "minutes.json"
    for process in range(2):
        stopwatch = Stopwatch()
        with stopwatch.stage("search"):
            stopwatch.keep(file)
            clock[0] += 60.0
        if damage is not None and not process:
            file.write_text(damage)
    assert json.loads(file.read_text()) == {"search": 2.0 if damage is None else 1.0}
