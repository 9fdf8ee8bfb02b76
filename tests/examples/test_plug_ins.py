"""The plug-in examples, as a user runs them, for a few episodes; RLlib and BenchMARL need environments of their own."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from prune_env import FilterPruneEnv

EXAMPLES = Path(__file__).parents[2] / "examples"
ROW = re.compile(r"^(\S.*?) +(\d+) +([\d.]+) % +([\d.]+) %   \(([\d, ]+)\)$", re.M)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("your_own", "cross-entropy"),
        pytest.param("sb3", "SB3 PPO", marks=pytest.mark.supersuit),
        ("torchrl", "TorchRL QMIX"),
    ],
)
def test_it_searches_and_compares(name: str, label: str) -> None:
    command = [sys.executable, str(EXAMPLES / f"plug_in_{name}.py"), "--episodes", "30"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=EXAMPLES.parent)
    assert done.returncode == 0, done.stderr
    rows = ROW.findall(done.stdout)
    assert [row[0] for row in rows] == [label, "random", "uniform"]
    plans, accuracies, macs = ([float(row[column]) for row in rows] for column in (1, 2, 3))
    assert 15 <= plans[0] == plans[1] <= 30  # distinct ones
    assert max(accuracies[:2]) >= accuracies[2]
    assert all(29 <= ratio <= 30 for ratio in macs)
    assert all(len(row[4].split(",")) == 5 for row in rows)


@pytest.mark.supersuit
def test_stable_baselines_sees_seeds_and_truncation(
    make_env: Callable[..., FilterPruneEnv], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from plug_in_sb3 import SharedPolicyEnv, pettingzoo_env_to_vec_env_v1

    for settings, cut in (({"max_cycles": 2}, True), ({"rounds": 2}, False)):
        env = SharedPolicyEnv(pettingzoo_env_to_vec_env_v1(make_env(**settings)))
        assert env.seed(3) == [3] * 5
        first = env.reset()
        for ended in (False, True):
            observations, rewards, dones, infos = env.step(np.full(5, 2))
            assert dones.tolist() == [ended] * 5
            assert [info["TimeLimit.truncated"] for info in infos] == [ended and cut] * 5
        assert rewards.shape == (5,)
        assert np.array_equal(observations, first), "a new episode has started"
        assert not np.array_equal(infos[0]["terminal_observation"], first[0])


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("plug_in_*.py")), ids=lambda path: path.stem)
def test_it_stays_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 80
