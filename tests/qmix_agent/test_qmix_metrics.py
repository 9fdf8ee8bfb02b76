"""The log of metrics."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from games import TwoStep
from qmix_helpers import SMALL, rows_of

from qmix_agent import QMIX
from qmix_agent.metrics import MetricsLog, restore, to_line


def test_tensorboard_events_are_written(tmp_path: Path) -> None:
    """A resumed agent replaces the events of episodes that it plays again."""
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = MetricsLog(tmp_path, 0)
    log.write([{"episode": 1, "return": 0.5, "info/accuracy": 0.25, "loss": None, "seconds": 1.0}])
    log.write([{"episode": 2, "return": 0.75, "loss": float("nan")}, {"episode": 3, "return": 8.0}])
    log.close()
    log = MetricsLog(tmp_path, 2)
    log.write([{"episode": 3, "return": 1.0}])
    log.close()
    events = event_accumulator.EventAccumulator(str(tmp_path)).Reload()
    assert sorted(events.Tags()["scalars"]) == ["info/accuracy", "train/return"]
    assert [(one.step, one.value) for one in events.Scalars("train/return")] == [(1, 0.5), (2, 0.75), (3, 1.0)]


def test_without_tensorboard_only_rows_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    QMIX(TwoStep(), SMALL).learn(2, log_dir=tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_new_agent_moves_the_log_of_an_earlier_run(tmp_path: Path) -> None:
    QMIX(TwoStep(), SMALL).learn(2, log_dir=tmp_path, progress=False)
    QMIX(TwoStep(), SMALL).learn(3, log_dir=tmp_path, progress=False)
    assert len(rows_of(tmp_path)) == 3
    assert len((tmp_path / "metrics.previous.jsonl").read_text().splitlines()) == 2


ROWS = [to_line({"episode": number, "seconds": number / 7}) for number in (1, 2, 3)]
LOG = "".join(f"{row}\n" for row in ROWS)


@pytest.mark.parametrize(
    "found",
    [
        LOG + ROWS[0],
        LOG + "{}\n" + LOG[:10],
        "",
        None,
        LOG[:-9],
        LOG.replace(ROWS[1] + "\n", ""),
        LOG.replace(ROWS[1], "garbage"),
        "garbage",
    ],
)
def test_a_log_is_restored_from_the_rows_of_the_agent(found: str | None, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    if found is not None:
        path.write_text(found)
    restore(tmp_path, ROWS)
    assert path.read_text() == LOG
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_the_log_of_another_run_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(LOG.replace("0.", "0.1"))
    before = (tmp_path / "metrics.jsonl").read_text()
    other = [to_line({"episode": 1, "seconds": 0.25})]
    with pytest.raises(ValueError, match=r"metrics\.jsonl"):
        restore(tmp_path, other)
    assert (tmp_path / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize("damage", ["", "garbage", None])
@pytest.mark.parametrize("episodes", [4, 6])
def test_a_resumed_agent_has_its_whole_log(damage: str | None, episodes: int, tmp_path: Path) -> None:
    """Also where all episodes were played."""
    log, path = tmp_path / "log", tmp_path / "log" / "metrics.jsonl"
    QMIX(TwoStep(), SMALL).learn(4, log, tmp_path / "checkpoint", progress=False)
    before = path.read_text()
    path.unlink() if damage is None else path.write_text(damage)
    QMIX.load(tmp_path / "checkpoint", TwoStep()).learn(episodes, log, tmp_path / "checkpoint", progress=False)
    assert path.read_text().startswith(before)
    assert [row["episode"] for row in rows_of(log)] == list(range(1, episodes + 1))


@pytest.mark.parametrize("name", ["metrics.jsonl", "events.out.tfevents"])
def test_a_full_disk_is_one_error_that_names_the_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, full = Path.open, [False]

    class File(io.FileIO):
        def write(self, content: Any) -> int:
            return super().write(content[: len(content) // 2] if full[0] else content)

    def opened(path: Path, *arguments: Any, **named: Any) -> Any:
        found = path.name.startswith(name) and arguments == ("ab",)
        return File(path, "ab") if found else original(path, *arguments, **named)

    monkeypatch.setattr(Path, "open", opened)
    log = MetricsLog(tmp_path, 0)
    log.write([{"episode": 1, "return": 0.5}])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    full[0] = True
    with pytest.raises(OSError, match=re.escape(f"{tmp_path}{os.sep}{name}")) as caught:
        log.write([{"episode": 2, "return": 1.0}])
    assert caught.value.errno == errno.ENOSPC
    assert "\n" not in str(caught.value)
    log.close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == before["metrics.jsonl"]
    if name != "metrics.jsonl":
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, episode=0)
    log.write([{"episode": 1, "return": float("nan"), "loss": float("inf"), "length": 2}])
    log.close()
    row = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert row == {"episode": 1, "return": None, "loss": None, "length": 2}
