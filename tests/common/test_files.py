"""Room is checked before files are written, and temporary files are swept after a kill."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prune_env.common.files import check_space, replacing, sweep


def test_room_is_checked_before_anything_is_written(tmp_path: Path) -> None:
    check_space(tmp_path / "new", 1000)
    with pytest.raises(OSError, match="new"):
        check_space(tmp_path / "new", 2.0**60)


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
