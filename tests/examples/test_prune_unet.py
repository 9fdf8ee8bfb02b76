"""The example for networks with an answer for every pixel, as a user runs it."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
from scripts import table_of

SCRIPT = Path(__file__).parents[2] / "examples" / "prune_unet.py"
SMALL = [
    "--canvases=80",
    "--width=4",
    "--training.epochs=1",
    "--training.min-steps=10",
    "--distillation.epochs=1",
    "--distillation.min-steps=4",
    "--episodes=2",
]


@pytest.mark.slow
def test_it_prunes_saves_and_exports(tmp_path: Path) -> None:
    rows = table_of(SCRIPT, f"--out={tmp_path / 'unet'}", *SMALL)
    assert list(rows) == ["original", "pruned", "pruned, distilled"]
    assert 0.48 <= rows["pruned"][1] / rows["original"][1] <= 0.5
    assert rows["pruned"][2] < rows["original"][2]
    assert {file.name for file in (tmp_path / "unet").iterdir()} == {"pruned.json", "pruned.safetensors", "pruned.onnx"}


def test_canvases_have_four_digits_and_their_masks() -> None:
    data = runpy.run_path(str(SCRIPT))["canvases"](40)
    assert data.image_shape == (1, 32, 32)
    assert len(data.classes) == 11
    assert [len(split) for split in (data.train, data.reward, data.test)] == [40, 10, 10]
    for split in (data.train, data.reward, data.test):
        images, masks = split.images[:, 0], split.labels
        assert bool((images[masks > 0] >= 64).all())
        assert bool((images[masks == 0] < 64).all())
        for quarter in (masks[:, :16, :16], masks[:, :16, 16:], masks[:, 16:, :16], masks[:, 16:, 16:]):
            assert all(len(mask.unique()) == 2 for mask in quarter), "one digit in each quarter"
    assert not bool((data.train.images[:10] == data.test.images).flatten(1).all(1).any())
    assert torch.equal(runpy.run_path(str(SCRIPT))["canvases"](40).train.images, data.train.images)
