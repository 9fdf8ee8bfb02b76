"""The example for one's own network and data, as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from scripts import run
from torchvision.models import resnet18

from prune_env import load_pruned
from prune_env.__main__ import main

SCRIPT = Path(__file__).parents[2] / "examples" / "prune_your_model.py"
SMALL = [
    "--episodes=0",
    "--training.epochs=1",
    "--distillation.epochs=1",
    "--distillation.min-steps=4",
]


@pytest.mark.slow
def test_it_trains_prunes_and_saves_and_the_command_takes_its_network(tmp_path: Path) -> None:
    done = run(SCRIPT, f"--out={tmp_path}", *SMALL)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run" / "pruned.json").read_text())
    assert 0.49 <= record["metrics"]["macs_ratio"] <= 0.5
    assert record["metrics"]["original_accuracy"] > 0.2
    assert len(list((tmp_path / "images").rglob("*.png"))) == 1797
    original, weights = resnet18(num_classes=10), tmp_path / "trained.safetensors"
    original.load_state_dict(load_file(weights))
    pruned = load_pruned(tmp_path / "run", base_model=original)
    assert pruned(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert main(["inspect", f"{SCRIPT}:make", "--no-proof"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("data", ["missing", "empty"])
def test_a_folder_that_cannot_be_read_is_told_in_one_line(tmp_path: Path, data: str) -> None:
    for part in ("train", "test"):
        (tmp_path / "empty" / part).mkdir(parents=True)
    done = run(SCRIPT, f"--data={tmp_path / data}", f"--out={tmp_path / 'own'}")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert str(tmp_path / data) in done.stderr
    assert "PATH/{train,test}/<class>/*" in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_it_stays_short() -> None:
    assert len(SCRIPT.read_text().splitlines()) < 100
