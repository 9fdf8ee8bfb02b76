"""Files are written whole or not at all, checked when they are read, locked, and swept after a kill."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from prune_env.common.files import (
    DamagedFileError,
    check_space,
    hold,
    load_state,
    load_tensors,
    release,
    replacing,
    save_state,
    save_tensors,
    sweep,
)

TENSORS = {"weight": torch.arange(12.0).view(3, 4), "count": torch.tensor(7)}
SAVE = {"file.safetensors": save_tensors, "file.pt": save_state}
LOAD = {"file.safetensors": load_tensors, "file.pt": load_state}
HOLDER = """
import sys, time
from pathlib import Path
from prune_env.common.files import hold
hold(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


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
from prune_env.common.files import save_state, save_tensors
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


def test_room_is_checked_before_anything_is_written(tmp_path: Path) -> None:
    check_space(tmp_path / "new", 1000)
    with pytest.raises(OSError, match="new"):
        check_space(tmp_path / "new", 2.0**60)


def test_a_lock_names_its_process_and_ends_with_it(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(lock)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(BlockingIOError, match=str(process.pid)):
        hold(lock)
    process.kill()
    process.wait()
    hold(lock)
    hold(lock)  # the same process may hold it again
    assert str(os.getpid()) in lock.read_text()
    release(lock)


def test_a_lock_does_not_follow_a_link(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / ".lock").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match=r"\.lock"):
        hold(tmp_path / ".lock")
    assert (tmp_path / "victim").read_text() == "precious"


def test_leftovers_of_ended_processes_are_swept_and_others_kept(tmp_path: Path) -> None:
    code = f"""
import os
from pathlib import Path
from prune_env.common.files import replacing
with replacing(Path({str(tmp_path / "file.bin")!r})) as temporary:
    temporary.write_bytes(b"half")
    os._exit(1)
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    (left,) = tmp_path.iterdir()
    (tmp_path / ".hidden-of-a-user").write_text("")
    with replacing(tmp_path / "file.bin") as temporary:
        temporary.write_bytes(b"whole")
        sweep(tmp_path)
        assert temporary.exists(), "it belongs to a living process"
    assert not left.exists()
    assert sorted(file.name for file in tmp_path.iterdir()) == [".hidden-of-a-user", "file.bin"]


def test_old_leftovers_of_other_machines_are_swept(tmp_path: Path) -> None:
    name = f".file-{'0' * 8}-{os.getpid()}-{'a' * 32}.bin"
    (tmp_path / name).write_text("")
    sweep(tmp_path)
    assert (tmp_path / name).exists()
    os.utime(tmp_path / name, (0, time.time() - 2 * 24 * 60 * 60))
    sweep(tmp_path)
    assert not (tmp_path / name).exists()
