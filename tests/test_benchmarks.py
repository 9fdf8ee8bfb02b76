"""The search methods keep their budget and repeat under one seed; the benchmarks of QMIX compare what they say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import qmix_speed
from benchmarks.games import Idle
from benchmarks.methods import METHODS
from benchmarks.peers import Settings, available, make
from prune_env import FilterPruneEnv


@pytest.mark.parametrize("method", METHODS)
def test_methods_keep_the_budget_and_repeat(make_env: Callable[..., FilterPruneEnv], method: str) -> None:
    first, second = (METHODS[method](make_env(), 8, 3) for _ in range(2))
    assert first.entries == second.entries
    assert len(first.entries) == (1 if method == "uniform" else 8)
    assert len({entry.plan for entry in first.entries}) == len(first.entries)
    assert all(0.49 <= entry.macs_ratio <= 0.5 for entry in first.entries)
    assert first.curve == sorted(first.curve)


@pytest.mark.filterwarnings("ignore:PettingZoo in TorchRL")
def test_speed_takes_turns_and_compares_with_the_matching_network() -> None:
    small = {"agents": 3, "observations": 4, "actions": 3, "steps": 2}
    rates = qmix_speed.measure(qmix_speed.Config(repeats=2, updates=1, episodes=1, **small))
    assert list(rates) == ["ours, GRU", "ours, MLP", "TorchRL, MLP"]
    assert all(len(values) == 2 and min(values) > 0 for ways in rates.values() for values in ways.values())
    rates["ours, MLP"]["update"], rates["TorchRL, MLP"]["update"] = [10.0, 30.0], [5.0, 5.0]
    rows = qmix_speed.summary(rates)
    assert rows["TorchRL, MLP"]["ours / update"] == 4.0
    assert "5 (ours 4.0 x)" in qmix_speed.table(rows)


@pytest.mark.filterwarnings("ignore:PettingZoo in TorchRL")
@pytest.mark.parametrize("name", ["ours, MLP", "TorchRL, MLP"])
def test_peers_draw_equal_amounts_and_learn(name: str) -> None:
    settings = Settings(steps=2, batch_size=4, updates_per_episode=1)
    options = {"learning_starts": settings.buffer_size} if name.startswith("ours") else {}
    peer = make(name, Idle(3, 4, 3, steps=2), settings, 0, None, **options)
    assert peer.collect(5) == 0
    batch = peer.draw()
    rewards = batch.rewards if name.startswith("ours") else batch["next", "reward"]
    assert rewards.numel() == settings.batch_size * settings.steps
    peer.step(batch)
    assert peer.evaluate(Idle(3, 4, 3, steps=2), 2) == 0


def test_pymarl_is_left_out_in_plain_words(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "PyMARL, GRU" not in available(None)
    assert "PyMARL, GRU: left out; give --pymarl the path of a clone" in capsys.readouterr().out
    with pytest.raises(ValueError, match="q_learner"):
        available(tmp_path)
