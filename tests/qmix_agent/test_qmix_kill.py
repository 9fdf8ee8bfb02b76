"""kill -9 at random moments: every resumed run equals an uninterrupted one. QMIX_KILLS sets the number of moments."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from games import Archiving
from qmix_helpers import SMALL, rows_of, weights

from qmix_agent import QMIX

ROOT = Path(__file__).parents[2]
TOTAL_EPISODES = 60
KILLS = int(os.environ.get("QMIX_KILLS", "2"))
KINDS: dict[str, tuple[dict[str, Any], int]] = {  # settings and n_envs
    "one environment": ({"standardise_returns": True, "buffer_size": 10}, 1),
    "parallel environments": ({"buffer_size": 20}, 4),
}

SCRIPT = """
import sys
sys.path[:0] = {paths!r}
import torch
torch.set_num_threads(1)
from test_qmix_kill import run
run({kind!r}, {out!r})
"""


def run(kind: str, out: str | Path) -> QMIX:
    """Train to the end, from the last checkpoint if there is one."""
    settings, n_envs = KINDS[kind]
    if QMIX.checkpoint_exists(out):
        agent = QMIX.load(out, Archiving())
    else:
        agent = QMIX(Archiving(), dataclasses.replace(SMALL, checkpoint_every=4, **settings), seed=5)
    return agent.learn(TOTAL_EPISODES, log_dir=out, checkpoint_dir=out, n_envs=n_envs, progress=False)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[bytes, list]]:
    results = {}
    for kind in KINDS:
        out = tmp_path_factory.mktemp("uninterrupted")
        results[kind] = weights(run(kind, out)), rows_of(out)
    return results


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(KILLS))
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_resumed_after_kill_9_equals_an_uninterrupted_one(
    kind: str, moment: int, tmp_path: Path, uninterrupted: dict[str, tuple[bytes, list]]
) -> None:
    rng = np.random.default_rng(moment)
    rows, pause = int(rng.integers(1, TOTAL_EPISODES - 10)), float(rng.uniform(0, 0.03))
    code = SCRIPT.format(paths=[str(ROOT), str(Path(__file__).parent)], kind=kind, out=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"})
    log = tmp_path / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not log.exists() or log.read_bytes().count(b"\n") < rows:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.001)
    time.sleep(pause)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    with log.open("a") as file:
        file.write('{"episode": 99')  # half a row
    agent = run(kind, tmp_path)
    assert (weights(agent), rows_of(tmp_path)) == uninterrupted[kind]
