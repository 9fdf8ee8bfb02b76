"""Run an example as a user does, and read the table that it prints."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path


def run(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run an example from the root of the clone."""
    command = [sys.executable, str(script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=580, cwd=script.parent.parent)


def table_of(script: Path, *arguments: str) -> dict[str, list[float]]:
    """Run an example, and return the numbers of every network in its table: accuracy in %, MACs and parameters."""
    done = run(script, *arguments)
    assert done.returncode == 0, done.stderr
    return {
        name: [float(number.replace(",", "")) for number in numbers]
        for name, *numbers in re.findall(r"^(\w[\w, ]*?) +([\d.]+) % +([\d,]+) +([\d,]+)$", done.stdout, re.M)
    }
