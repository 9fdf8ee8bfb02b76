"""Stopping and going on: to the bit, whatever stopped it; and what cannot be loaded says so."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from games import Archiving, Ragged, TwoStep
from test_qmix_agent import SMALL, rows_of, weights

from qmix_agent import QMIX, CheckpointError, checkpoint

CONFIG = dataclasses.replace(SMALL, standardise_returns=True, buffer_size=10)
ROOT = Path(__file__).parents[2]


def test_resuming_is_never_having_stopped(tmp_path: Path) -> None:
    straight = QMIX(Archiving(), CONFIG, seed=5).learn(16, log_dir=tmp_path / "a", progress=False)
    QMIX(Archiving(), CONFIG, seed=5).learn(
        9, log_dir=tmp_path / "b", checkpoint_dir=tmp_path / "b", checkpoint_every=7, progress=False
    )
    agent = QMIX.load(tmp_path / "b", Archiving())
    assert agent.episode == 9
    agent.learn(16, log_dir=tmp_path / "b", checkpoint_dir=tmp_path / "b", progress=False)
    assert weights(agent) == weights(straight)
    assert rows_of(tmp_path / "b") == rows_of(tmp_path / "a")
    assert agent.team_env.env.lengths == straight.team_env.env.lengths
    one, two = agent.state_dict(), straight.state_dict()
    assert one["return_scale"] == two["return_scale"]
    for first, second in zip(one["buffer"], two["buffer"], strict=True):
        assert np.array_equal(first.observations, second.observations)


@pytest.mark.parametrize("where", ["step", "update", "evaluate"])
def test_ctrl_c_leaves_the_last_whole_episode(tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = QMIX(Archiving(), CONFIG, seed=5).learn(14, log_dir=tmp_path / "a", progress=False)
    agent = QMIX(Archiving(), CONFIG, seed=5)
    target = {
        "step": (agent.team_env, "step_wait"),
        "update": (agent.learner.optimizer, "step"),
        "evaluate": (agent, where),
    }
    owner, name = target[where]
    original, calls = getattr(owner, name), 0

    def interrupted(*rest: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        result = original(*rest, **named)
        if calls == {"step": 30, "update": 11, "evaluate": 2}[where]:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(owner, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        agent.learn(14, log_dir=tmp_path / "b", checkpoint_dir=tmp_path / "b", progress=False)
    stopped = agent.episode
    assert 0 < stopped < 14
    resumed = QMIX.load(tmp_path / "b", Archiving())
    assert resumed.episode == stopped
    resumed.learn(14, log_dir=tmp_path / "b", progress=False)
    agent.learn(14, progress=False)  # the interrupted object itself goes on just as well
    assert weights(agent) == weights(resumed) == weights(straight)
    assert rows_of(tmp_path / "b") == rows_of(tmp_path / "a")
    assert agent.team_env.env.lengths == straight.team_env.env.lengths


def test_nan_stops_and_the_last_good_checkpoint_stays(tmp_path: Path) -> None:
    class Explodes(Ragged):
        episodes = 0

        def begin(self) -> None:
            super().begin()
            Explodes.episodes += 1

        def play(self, actions: dict[str, int]) -> tuple[float, bool, bool]:
            reward, terminated, truncated = super().play(actions)
            return (1e38 if Explodes.episodes > 7 else reward), terminated, truncated

    config = dataclasses.replace(SMALL, eval_every=0, loss="mse", batch_size=10)
    agent = QMIX(Explodes(), config)
    with pytest.raises(FloatingPointError, match="loss is inf at update"):
        agent.learn(20, checkpoint_dir=tmp_path, checkpoint_every=2, progress=False)
    loaded = QMIX.load(tmp_path)
    assert loaded.episode == 6
    assert all(torch.isfinite(parameter).all() for parameter in loaded.learner.parameters)


def test_the_total_counts_and_a_callback_hears_of_each_episode(tmp_path: Path) -> None:
    heard: list[int] = []
    agent = QMIX(TwoStep(), SMALL).learn(3, progress=False, callback=lambda _, row: heard.append(row["episode"]))
    agent.save(tmp_path)
    again = QMIX.load(tmp_path, TwoStep())
    again.learn(5, progress=False, callback=lambda _, row: heard.append(row["episode"]))
    again.learn(5, progress=False, callback=lambda _, row: heard.append(row["episode"]))
    assert heard == [1, 2, 3, 4, 5]


def test_checkpoints_come_when_due_and_at_the_end(tmp_path: Path) -> None:
    seen: list[int] = []

    def look(_: QMIX, row: dict[str, Any]) -> None:
        if QMIX.checkpoint_exists(tmp_path):
            seen.append(torch.load(tmp_path / checkpoint.FILE_NAME, weights_only=True)["episode"])

    QMIX(TwoStep(), SMALL).learn(5, checkpoint_dir=tmp_path, checkpoint_every=2, progress=False, callback=look)
    assert seen == [2, 2, 4, 5]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.1.pt", checkpoint.FILE_NAME]


def test_the_last_checkpoints_are_kept(tmp_path: Path) -> None:
    def kept() -> list[int]:
        return [torch.load(path, weights_only=True)["episode"] for path in checkpoint.files(tmp_path)]

    agent = QMIX(TwoStep(), SMALL).learn(
        6, checkpoint_dir=tmp_path, checkpoint_every=1, keep_checkpoints=3, progress=False
    )
    assert kept() == [6, 5, 4]
    agent.save(tmp_path, keep=1)
    assert kept() == [6]
    with pytest.raises(ValueError, match="keep must be"):
        agent.save(tmp_path, keep=0)


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path: Path, damage: str) -> None:
    """Gone: killed between moving the old file on and putting the new one in its place."""
    straight = QMIX(Archiving(), CONFIG, seed=5).learn(9, checkpoint_dir=tmp_path, checkpoint_every=3, progress=False)
    path = tmp_path / checkpoint.FILE_NAME
    whole = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
        agent = QMIX.load(tmp_path, Archiving())
    else:
        if damage == "cut":
            del whole[len(whole) // 2 :]
        else:
            with zipfile.ZipFile(path) as archive:
                largest = max(archive.infolist(), key=lambda info: info.file_size)
            whole[largest.header_offset + largest.file_size // 2] ^= 1
        path.write_bytes(whole)
        with pytest.warns(UserWarning, match=r"checkpoint\.pt cannot be read.*the one before it.*checkpoint\.1\.pt"):
            agent = QMIX.load(tmp_path, Archiving())
    assert agent.episode == 6
    assert weights(agent.learn(9, progress=False)) == weights(straight)


class FullDisk:
    """A file that takes 10,000 bytes."""

    def __init__(self, file: Any) -> None:
        self.file, self.written = file, 0

    def write(self, data: Any) -> int:
        self.written += len(data)
        if self.written > 10_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def test_a_full_disk_stops_and_leaves_the_last_good_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = QMIX(Archiving(), CONFIG, seed=5).learn(9, progress=False)
    agent = QMIX(Archiving(), CONFIG, seed=5).learn(6, checkpoint_dir=tmp_path, checkpoint_every=3, progress=False)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    save = torch.save
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", lambda content, file: save(content, FullDisk(file)))
        with pytest.raises(OSError, match=r"No space left on device.*the checkpoints before it are untouched") as told:
            agent.learn(9, checkpoint_dir=tmp_path, progress=False)
    assert told.value.errno == errno.ENOSPC
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert weights(QMIX.load(tmp_path, Archiving()).learn(9, progress=False)) == weights(straight)
    assert weights(agent) == weights(straight)  # the object itself is whole, too, and can be saved elsewhere


def test_weights_that_are_not_finite_are_never_written(tmp_path: Path) -> None:
    agent = QMIX(TwoStep(), SMALL)
    before = agent.save(tmp_path).read_bytes()
    with torch.no_grad():
        agent.learner.network.head.weight[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"network\.head\.weight is not finite"):
        agent.save(tmp_path)
    assert (tmp_path / checkpoint.FILE_NAME).read_bytes() == before


def test_a_new_agent_does_not_overwrite_a_run(tmp_path: Path) -> None:
    QMIX(TwoStep(), SMALL).learn(2, checkpoint_dir=tmp_path, progress=False)
    with pytest.raises(FileExistsError, match=r"QMIX\.load"):
        QMIX(TwoStep(), SMALL).learn(2, checkpoint_dir=tmp_path, progress=False)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = QMIX(TwoStep(), SMALL)
    before = agent.save(tmp_path).read_bytes()

    def full(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        agent.save(tmp_path)
    assert (tmp_path / checkpoint.FILE_NAME).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.FILE_NAME]


@pytest.mark.slow
def test_acts_the_same_in_a_new_process_without_an_environment(tmp_path: Path) -> None:
    agent = QMIX(Ragged(), SMALL).learn(6, progress=False)
    agent.save(tmp_path)
    code = f"""
import sys, json
sys.path[:0] = [{str(ROOT)!r}]
import numpy as np
from qmix_agent import QMIX
agent = QMIX.load({str(tmp_path)!r})
seen = {{name: np.full(i + 1, 0.3, np.float32) for i, name in enumerate(agent.spec.agents)}}
print(json.dumps([agent.act(seen, reset=i == 0) for i in range(4)]))
"""
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    seen = {name: np.full(i + 1, 0.3, np.float32) for i, name in enumerate(agent.spec.agents)}
    assert json.loads(printed) == [agent.act(seen, reset=i == 0) for i in range(4)]


def test_without_an_environment_it_can_only_act_but_saves_whole(tmp_path: Path) -> None:
    agent = QMIX(Archiving(), CONFIG).learn(6, progress=False)
    agent.save(tmp_path / "one")
    acting = QMIX.load(tmp_path / "one")
    for attempt in (lambda: acting.learn(9, progress=False), lambda: acting.evaluate(episodes=1)):
        with pytest.raises(ValueError, match="without an environment"):
            attempt()
    acting.save(tmp_path / "two")
    again = QMIX.load(tmp_path / "two", Archiving())
    assert again.team_env.env.lengths == agent.team_env.env.lengths
    assert weights(again.learn(9, progress=False)) == weights(agent.learn(9, progress=False))


def test_what_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        QMIX.load(tmp_path)
    assert not QMIX.checkpoint_exists(tmp_path)
    path = QMIX(Ragged(), SMALL).save(tmp_path)
    with pytest.raises(CheckpointError, match=r"not the one this agent was made for.*n_actions: \(4, 5\)"):
        QMIX.load(tmp_path, Ragged((4, 5)))
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"text"):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="damaged"):
            QMIX.load(tmp_path)
    torch.save({"weights": 1}, path)
    with pytest.raises(CheckpointError, match="not a checkpoint of qmix_agent"):
        QMIX.load(tmp_path)
    for version in (1, 99):
        torch.save({"format": "qmix_agent", "version": version}, path)
        with pytest.raises(CheckpointError, match=f"version {version}.*the release that wrote it"):
            QMIX.load(tmp_path)
    torch.save({"format": "qmix_agent", "version": checkpoint.VERSION, "spec": {}}, path)
    with pytest.raises(CheckpointError, match="cannot be used"):
        QMIX.load(tmp_path)


def test_an_environment_that_cannot_take_its_state_back_is_told_of(tmp_path: Path) -> None:
    QMIX(Archiving(), SMALL).learn(1, progress=False).save(tmp_path)
    with pytest.warns(UserWarning, match="Ragged has no"):
        QMIX.load(tmp_path, Ragged())


def test_environment_state_is_kept_exactly_or_refused() -> None:
    state = {"a": [1, (2.5, None)], "b": np.arange(3, dtype=np.int16), "c": torch.ones(2), "d": np.float32(0.5)}
    back = checkpoint.decode(checkpoint.encode(state))
    assert back["a"] == [1, (2.5, None)]
    assert back["b"].dtype == np.int16
    assert back["b"].tolist() == [0, 1, 2]
    assert torch.equal(back["c"], torch.ones(2))
    assert back["d"] == 0.5
    with pytest.raises(TypeError, match=r"\['x'\]\[0\] is a object"):
        checkpoint.encode({"x": [object()]})
