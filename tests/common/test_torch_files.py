"""Torch files from somebody else: nothing runs, and a file cannot claim more memory than it has bytes."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from prune_env.common.tensor_files import DamagedFileError, load_state, save_state
from prune_env.common.torch_files import read_torch
from prune_env.data import DataSplits
from prune_env.networks import create
from prune_env.training.fit import FitConfig, RunOptions, fit
from prune_env.training.pretrained import load_weights


class Calls:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., Any], argument: Any) -> None:
        self.call = function, (argument,)

    def __reduce__(self) -> Any:
        return self.call


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def compressed(content: bytes) -> bytes:
    """Return the same archive with compressed parts."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        for part in old.infolist():
            new.writestr(part.filename, old.read(part))
    return buffer.getvalue()


def overlapping(content: bytes) -> bytes:
    """Return an archive that lists its largest part three times."""
    buffer = io.BytesIO(content)
    with zipfile.ZipFile(buffer, "a") as archive:
        largest = max(archive.infolist(), key=lambda part: part.file_size)
        for number in range(2):
            archive.writestr(f"archive/data/{number + 7}", b"")
            archive.filelist[-1].header_offset = largest.header_offset
            archive.filelist[-1].file_size = archive.filelist[-1].compress_size = largest.file_size
    return buffer.getvalue()


BUFFER = Calls(bytearray, 10**8)
ATTACKS: dict[str, Callable[[Path], bytes]] = {
    "code": lambda canary: saved({"a": Calls(os.mkdir, str(canary))}),
    "code in the old format": lambda canary: pickle.dumps(Calls(os.mkdir, str(canary)), 2),
    "a buffer": lambda _: saved({"a": BUFFER}),
    "a buffer in the old format": lambda _: pickle.dumps(BUFFER, 2),
    "compressed parts": lambda _: compressed(saved({"a": torch.zeros(10**6)})),
    "overlapping parts": lambda _: overlapping(saved({"a": torch.zeros(10**5)})),
    "no torch file": lambda _: b"text",
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_are_one_error_of_one_line_that_names_the_file(attack: str, tmp_path: Path) -> None:
    canary, file = tmp_path / "canary", tmp_path / "file.pt"
    content = ATTACKS[attack](canary)
    with pytest.raises(ValueError) as plain:  # noqa: PT011
        read_torch(io.BytesIO(content))
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"file\.pt") as weights:
        load_weights(create("small_cnn", 10, 1), file)
    file.write_bytes(content + hashlib.blake2b(content, digest_size=16).digest())
    with pytest.raises(DamagedFileError, match=r"file\.pt") as state:
        load_state(file)
    assert not canary.exists()
    for caught in (plain, weights, state):
        assert "\n" not in str(caught.value)
        assert "weights_only" not in str(caught.value)


def test_ordinary_files_are_read(tmp_path: Path) -> None:
    state = {"a": torch.arange(6.0).view(2, 3).T, "b": {"c": [1, 2.5, None, "text"]}}
    for new in (True, False):
        torch.save(state, tmp_path / "file.pt", _use_new_zipfile_serialization=new)
        with (tmp_path / "file.pt").open("rb") as file:
            found = read_torch(file)
        assert torch.equal(found["a"], state["a"])
        assert found["b"] == state["b"]


@pytest.mark.parametrize(
    "change", [{"step": None}, {"optimizers": 3}, {"optimizers": []}, {"model": {}}, {"averaged": [1]}]
)
def test_a_checkpoint_that_was_made_up_is_named(change: dict[str, Any], digits: DataSplits, tmp_path: Path) -> None:
    file = tmp_path / "run.pt"
    options = RunOptions(progress=False, checkpoint=file)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    fit(network, digits, FitConfig(epochs=0.01), run=options)
    state = {key: value for key, value in ({**load_state(file), **change}).items() if value is not None}
    save_state(file, state)
    with pytest.raises(ValueError, match=r"run\.pt"):
        fit(network, digits, FitConfig(epochs=0.01), run=options)
