"""Saving and loading a pruned network."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from prune_env import load_pruned, save_pruned
from prune_env.data import DataSplits
from prune_env.export import file_bytes
from prune_env.networks import create
from prune_env.pruning import build, find_groups, importance

PLAN = (16, 20, 30, 40, 100)


@pytest.fixture
def saved(trained: nn.Module, digits: DataSplits, tmp_path: Path) -> tuple[Path, nn.Module]:
    groups = find_groups(trained, digits.example_input)
    ranking = importance.ranking(importance.scores("l1", trained, groups))
    network = build(trained, groups, ranking, PLAN).eval()
    save_pruned(
        tmp_path / "run", network, PLAN, groups=groups, ranking=ranking, data=digits, network="small_cnn",
        metrics={"pruned_accuracy": 0.9},
    )  # fmt: skip
    return tmp_path / "run", network


def test_a_new_process_gives_equal_outputs(saved: tuple[Path, nn.Module], digits: DataSplits, tmp_path: Path) -> None:
    """Case 4: nothing is needed but the folder."""
    directory, network = saved
    images = digits.normalise(digits.test.images[:20])
    torch.save(images, tmp_path / "images.pt")
    code = (
        "import sys, torch, prune_env\n"
        "network = prune_env.load_pruned(sys.argv[1])\n"
        "assert not network.training\n"
        "with torch.inference_mode():\n"
        "    torch.save(network(torch.load(sys.argv[2])), sys.argv[3])\n"
    )
    files = [str(tmp_path / name) for name in ("images.pt", "outputs.pt")]
    subprocess.run([sys.executable, "-c", code, str(directory), *files], check=True)
    with torch.inference_mode():
        assert torch.equal(torch.load(tmp_path / "outputs.pt"), network(images))


def test_the_small_network_is_small(saved: tuple[Path, nn.Module], trained: nn.Module) -> None:
    """Case 3: parameters, shapes and the file on disk shrink; no mask is left."""
    directory, network = saved
    assert file_bytes(network) == (directory / "pruned.safetensors").stat().st_size
    assert file_bytes(network) < 0.7 * file_bytes(trained)
    tensors = load_file(directory / "pruned.safetensors")
    assert tensors["features.0.weight"].shape == (16, 1, 3, 3)
    assert tensors["features.3.weight"].shape == (20, 16, 3, 3)
    assert not [name for name in tensors if "mask" in name]


def test_the_record_says_what_it_is(saved: tuple[Path, nn.Module], digits: DataSplits) -> None:
    record = json.loads((saved[0] / "pruned.json").read_text())
    assert list(record["plan"].values()) == list(PLAN)
    assert record["network"]["name"] == "small_cnn"
    assert record["normalisation"]["mean"] == list(digits.mean)
    assert record["metrics"] == {"pruned_accuracy": 0.9}
    assert [len(entry["kept"]) for entry in record["kept_filters"]] == list(PLAN)


class Own(nn.Module):
    def __init__(self, filters: int = 12) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, filters, 3), nn.Linear(filters, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(x).relu().mean((2, 3)))


class TestErrors:
    def test_missing(self, tmp_path: Path, saved: tuple[Path, nn.Module]) -> None:
        with pytest.raises(FileNotFoundError, match=r"pruned\.json does not exist"):
            load_pruned(tmp_path / "nothing")
        (saved[0] / "pruned.safetensors").unlink()
        with pytest.raises(FileNotFoundError, match=r"pruned\.safetensors does not exist"):
            load_pruned(saved[0])

    def test_truncated(self, saved: tuple[Path, nn.Module]) -> None:
        file = saved[0] / "pruned.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(ValueError, match="truncated"):
            load_pruned(saved[0])

    def test_broken_record(self, saved: tuple[Path, nn.Module]) -> None:
        file = saved[0] / "pruned.json"
        text = file.read_text()
        file.write_text(text[:-50])
        with pytest.raises(ValueError, match="not valid JSON"):
            load_pruned(saved[0])
        file.write_text(text.replace('"format_version": 1', '"format_version": 99'))
        with pytest.raises(ValueError, match="format version 99"):
            load_pruned(saved[0])
        record = json.loads(text)
        del record["kept_filters"]
        file.write_text(json.dumps(record))
        with pytest.raises(ValueError, match="lacks kept_filters"):
            load_pruned(saved[0])

    def test_wrong_base(self, saved: tuple[Path, nn.Module]) -> None:
        with pytest.raises(ValueError, match="does not fit the base network: the group of layers"):
            load_pruned(saved[0], Own())
        assert isinstance(load_pruned(saved[0], create("small_cnn", 10, 1)), nn.Module)

    def test_a_network_of_ones_own_needs_its_base(self, digits: DataSplits, tmp_path: Path) -> None:
        model = Own().eval()
        groups = find_groups(model, digits.example_input)
        ranking = importance.ranking(importance.scores("l1", model, groups))
        network = build(model, groups, ranking, (5,)).eval()
        save_pruned(tmp_path, network, (5,), groups=groups, ranking=ranking, data=digits)
        with pytest.raises(ValueError, match="pass the unpruned network as base_model"):
            load_pruned(tmp_path)
        with pytest.raises(ValueError, match="has 13 filters"):
            load_pruned(tmp_path, Own(13))
        loaded = load_pruned(tmp_path, Own())
        with torch.inference_mode():
            assert torch.equal(loaded(digits.example_input), network(digits.example_input))


def test_a_killed_writer_leaves_the_old_file(
    saved: tuple[Path, nn.Module], digits: DataSplits, monkeypatch: pytest.MonkeyPatch, trained: nn.Module
) -> None:
    directory, network = saved
    before = shutil.copytree(directory, directory.with_name("before"))
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    groups = find_groups(trained, digits.example_input)
    ranking = importance.ranking(importance.scores("l1", trained, groups))
    with pytest.raises(KeyboardInterrupt):
        save_pruned(directory, network, PLAN, groups=groups, ranking=ranking, data=digits, network="small_cnn")
    for file in before.iterdir():
        assert file.read_bytes() == (directory / file.name).read_bytes()
    assert len(list(directory.iterdir())) == 2, "a temporary file was left"
