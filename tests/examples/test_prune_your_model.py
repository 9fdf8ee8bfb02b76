"""The example for one's own network and data, as a user runs it."""

from __future__ import annotations

import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from scripts import table_of

from prune_env.data import DataError, from_folder

SCRIPT = Path(__file__).parents[2] / "examples" / "prune_your_model.py"
SMALL = [
    "--episodes=3",
    "--finalists=1",
    "--training.epochs=2",
    "--distillation.epochs=1",
    "--distillation.min-steps=4",
]


@pytest.mark.slow
def test_it_prunes_saves_and_loads(tmp_path: Path) -> None:
    rows = table_of(SCRIPT, f"--out={tmp_path / 'own'}", *SMALL)
    assert rows["original"][1:] == [37_016_576, 11_181_642]
    assert 0.49 <= rows["pruned"][1] / rows["original"][1] <= 0.5
    assert rows["pruned"][2] < rows["original"][2]
    assert (tmp_path / "own" / "pruned.safetensors").is_file()


def test_it_reads_a_folder_at_the_size_that_is_asked_for(image_folder: Callable[..., Path]) -> None:
    path = image_folder(train=20)
    images = runpy.run_path(str(SCRIPT))["images"]
    data = images(str(path), 8)
    assert data.classes == ("cat", "dog")
    assert data.fingerprint == from_folder(path).fingerprint
    assert images(str(path), 12).image_shape == (3, 12, 12)


@pytest.mark.parametrize("parts", [(), ("test",), ("train",), ("train", "test"), ("train/cat", "test/cat")])
def test_a_folder_of_another_layout_is_told_the_expected_one(tmp_path: Path, parts: tuple[str, ...]) -> None:
    for part in parts:
        (tmp_path / "images" / part).mkdir(parents=True)
    with pytest.raises(DataError, match=r"images.*; expected PATH/\{train,test\}/<class>/\*"):
        runpy.run_path(str(SCRIPT))["images"](str(tmp_path / "images"), 8)


@pytest.mark.slow
@pytest.mark.parametrize("data", ["missing", "empty"])
def test_a_folder_that_cannot_be_read_is_told_in_one_line(tmp_path: Path, data: str) -> None:
    for part in ("train", "test"):
        (tmp_path / "empty" / part).mkdir(parents=True)
    command = [sys.executable, str(SCRIPT), f"--data={tmp_path / data}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=SCRIPT.parent.parent)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert str(tmp_path / data) in done.stderr
    assert "expected PATH/{train,test}/<class>/*" in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_it_stays_short() -> None:
    assert len(SCRIPT.read_text().splitlines()) < 90
