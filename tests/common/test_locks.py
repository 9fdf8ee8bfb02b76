"""A process holds a lock until it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from prune_env.common.locks import hold, release

HOLDER = """
import sys, time
from pathlib import Path
from prune_env.common.locks import hold
hold(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


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
