"""The record of a saved network: reading, checking and writing pruned.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from prune_env import save_pruned
from prune_env.data import DataSplits
from prune_env.deploy.record import read_record, to_json
from prune_env.pruning.problem import ProblemConfig, PruningProblem

PLAN = (16, 20, 30, 40, 100)


@pytest.fixture
def folder(trained: nn.Module, digits: DataSplits, tmp_path: Path) -> Path:
    problem = PruningProblem.create(trained, digits, ProblemConfig(prove=False))
    metrics = {"pruned_accuracy": 0.9}
    save_pruned(tmp_path / "run", problem.build(PLAN), PLAN, problem, base="small_cnn", metrics=metrics)
    return tmp_path / "run"


def test_it_describes_network_plan_and_data(folder: Path, digits: DataSplits) -> None:
    record = read_record(folder)
    assert list(record["plan"].values()) == list(PLAN)
    assert record["network"] == {"name": "small_cnn", "base": None, "num_classes": 10, "in_channels": 1}
    assert record["data"]["name"] == "digits"
    assert record["data"]["digest"] == digits.fingerprint
    assert record["normalisation"]["mean"] == list(digits.mean)
    assert record["metrics"] == {"pruned_accuracy": 0.9}
    first = record["kept_channels"][0]
    assert (first["module"], first["side"], first["of"], len(first["kept"])) == ("features.0", "out", 32, PLAN[0])


def test_lists_of_numbers_are_on_one_line(folder: Path) -> None:
    text = (folder / "pruned.json").read_text()
    assert text == to_json(json.loads(text))
    assert max(len(line) for line in text.splitlines()) > 200


def test_missing_folders_and_files(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing.pruned\.json"):
        read_record(tmp_path / "nothing")
    with pytest.raises(NotADirectoryError, match=r"pruned\.json"):
        read_record(folder / "pruned.json")


def test_truncated_json(folder: Path) -> None:
    file = folder / "pruned.json"
    file.write_text(file.read_text()[:-50])
    with pytest.raises(ValueError, match=r"pruned\.json"):
        read_record(folder)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda r: r.update(format_version=99), "version 99.*version 2"),
        (lambda r: r.clear(), "version None"),
        (lambda r: r.pop("kept_channels"), "kept_channels"),
        (lambda r: r["network"].pop("base"), r"network\.base"),
        (lambda r: r["network"].update(name=3), r"network\.name .*str or null"),
        (lambda r: r.update(plan=[1, 2]), "plan .*mapping"),
        (lambda r: r["plan"].update({"features.0": 2.5}), r"plan\.features\.0 .*int.*2\.5"),
        (lambda r: r["plan"].update({"features.0": True}), r"plan\.features\.0 .*True"),
        (lambda r: r.update(kept_channels={}), "kept_channels .*list"),
        (lambda r: r["kept_channels"][0].update(kept="all"), r"kept_channels\[0\]\.kept .*list"),
        (lambda r: r["normalisation"].update(mean="0.5"), r"normalisation\.mean .*list"),
        (lambda r: r["data"].update(image_shape=[8, 8]), r"data\.image_shape .*3"),
    ],
)
def test_an_edited_record_is_refused(folder: Path, change: Callable[[dict[str, Any]], object], named: str) -> None:
    file = folder / "pruned.json"
    record = json.loads(file.read_text())
    change(record)
    file.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=named) as caught:
        read_record(folder)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r["modules"].update({"": "SmallCNM"}),
        lambda r: r["data"].update(classes=["O", *r["data"]["classes"][1:]]),
        lambda r: r["data"].update(name="digit3"),
        lambda r: r["normalisation"].update(mean=[0.125]),
        lambda r: r["metrics"].update(pruned_accuracy=0.8),
        lambda r: r["metrics"].update({"added": 1}),
        lambda r: r.update(added=1),
        lambda r: r.update(digest="0" * 32),
    ],
)
def test_a_damaged_value_that_a_record_may_have_is_noticed(
    folder: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    file = folder / "pruned.json"
    record = json.loads(file.read_text())
    change(record)
    file.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="digest") as caught:
        read_record(folder)
    assert str(file) in str(caught.value)


def test_metrics_are_stored_as_json_has_them(folder: Path) -> None:
    record = read_record(folder)
    record["metrics"] = {"by class": {10: 1.0, 2: (0.5, None, True)}, "text": "\u00fc\ud800"}
    (folder / "pruned.json").write_text(to_json(record))
    assert read_record(folder)["metrics"] == {"by class": {"10": 1.0, "2": [0.5, None, True]}, "text": "\u00fc\ud800"}
