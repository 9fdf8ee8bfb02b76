"""Files of tensors are written whole or not at all, and checked when they are read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from prune_env.common.tensor_files import DamagedFileError, load_state, load_tensors, save_state, save_tensors

TENSORS = {"weight": torch.arange(12.0).view(3, 4), "count": torch.tensor(7)}
SAVE = {"file.safetensors": save_tensors, "file.pt": save_state}
LOAD = {"file.safetensors": load_tensors, "file.pt": load_state}


@pytest.mark.parametrize("name", SAVE)
def test_what_is_saved_is_loaded(name: str, tmp_path: Path) -> None:
    SAVE[name](tmp_path / name, TENSORS)
    found = LOAD[name](tmp_path / name)
    assert all(torch.equal(found[key], TENSORS[key]) for key in TENSORS)


def loaded(path: Path) -> tuple[dict[str, Any] | None, str]:
    """Return what a file holds and no message, or None and the message of the error."""
    try:
        return LOAD[path.name](path), ""
    except DamagedFileError as error:
        return None, str(error)


@pytest.mark.parametrize("name", SAVE)
def test_every_flipped_byte_and_every_cut_is_noticed(name: str, tmp_path: Path) -> None:
    """A flip in a part that is not read, such as a zip entry's date, may pass if the contents are the same."""
    path = tmp_path / name
    SAVE[name](path, TENSORS)
    whole = path.read_bytes()
    noticed = 0
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        found, message = loaded(path)
        if found is None:
            noticed += 1
            assert name in message
            assert "weights_only" not in message
        else:
            assert all(torch.equal(found[key], TENSORS[key]) for key in TENSORS)
    assert noticed
    for length in range(0, len(whole), 31):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedFileError, match=name.replace(".", r"\.")):
            LOAD[name](path)


@pytest.mark.parametrize("name", SAVE)
def test_a_full_disk_leaves_the_earlier_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    SAVE[name](path, TENSORS)
    before = path.read_bytes()
    code = f"""
import resource, signal, torch
from pathlib import Path
from prune_env.common.tensor_files import save_state, save_tensors
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
try:
    {SAVE[name].__name__}(Path({str(path)!r}), {{"weight": torch.zeros(100_000)}})
except OSError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert str(path) in done.stdout
    assert done.stdout.count("\n") == 1
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [name]
