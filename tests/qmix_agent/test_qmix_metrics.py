"""The log of metrics."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
from games import TwoStep
from qmix_helpers import SMALL, rows_of

from qmix_agent import QMIX
from qmix_agent.metrics import MetricsLog


def test_tensorboard_events_are_written(tmp_path: Path) -> None:
    QMIX(TwoStep(), SMALL).learn(2, log_dir=tmp_path, progress=False)
    assert list(tmp_path.glob("events.out.tfevents*"))


def test_without_tensorboard_only_rows_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without_tensorboard(name: str, *rest: Any, **named: Any) -> Any:
        if "tensorboard" in name:
            raise ImportError(name)
        return original(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without_tensorboard)
    QMIX(TwoStep(), SMALL).learn(2, log_dir=tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_new_agent_moves_the_log_of_an_earlier_run(tmp_path: Path) -> None:
    QMIX(TwoStep(), SMALL).learn(2, log_dir=tmp_path, progress=False)
    QMIX(TwoStep(), SMALL).learn(3, log_dir=tmp_path, progress=False)
    assert len(rows_of(tmp_path)) == 3
    assert len((tmp_path / "metrics.previous.jsonl").read_text().splitlines()) == 2


def test_a_resumed_log_drops_later_and_damaged_rows(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"episode": 1}\n{"episode": 2}\n{"episode": 3}\n{"epi')
    log = MetricsLog(tmp_path, episode=2)
    log.write([{"episode": 3, "return": 1.0}])
    log.close()
    assert [json.loads(line)["episode"] for line in path.read_text().splitlines()] == [1, 2, 3]


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, episode=0)
    log.write([{"episode": 1, "return": float("nan"), "loss": float("inf"), "length": 2}])
    log.close()
    row = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert row == {"episode": 1, "return": None, "loss": None, "length": 2}
