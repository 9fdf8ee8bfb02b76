"""Checkpoint files: atomic writing, damaged and foreign files, and the encoding of environment state."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from games import Archiving, Ragged, TwoStep
from qmix_helpers import SMALL, archived_lengths, weights

from qmix_agent import QMIX, CheckpointError, checkpoint

CONFIG = dataclasses.replace(SMALL, standardise_returns=True, buffer_size=10, checkpoint_every=3)
ROOT = Path(__file__).parents[2]


# Writing


def kept_episodes(directory: Path) -> list[int]:
    return [torch.load(path, weights_only=True)["episode"] for path in checkpoint.list_files(directory)]


def test_the_last_checkpoints_are_kept(tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, checkpoint_every=1, keep_checkpoints=3)
    agent = QMIX(TwoStep(), config).learn(6, checkpoint_dir=tmp_path, progress=False)
    assert kept_episodes(tmp_path) == [6, 5, 4]
    agent.save(tmp_path)
    assert kept_episodes(tmp_path) == [6, 6, 5]


def test_a_smaller_number_of_kept_checkpoints_removes_older_ones(tmp_path: Path) -> None:
    for number in range(3):
        checkpoint.write(tmp_path, {"episode": number}, keep=3)
    checkpoint.write(tmp_path, {"episode": 3}, keep=1)
    assert kept_episodes(tmp_path) == [3]


class FullDisk:
    """A file that accepts 10,000 bytes."""

    def __init__(self, file: Any) -> None:
        self.file, self.written = file, 0

    def write(self, data: Any) -> int:
        self.written += len(data)
        if self.written > 10_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def test_a_full_disk_stops_training_and_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = QMIX(Archiving(), CONFIG, seed=5).learn(9, progress=False)
    agent = QMIX(Archiving(), CONFIG, seed=5).learn(6, checkpoint_dir=tmp_path, progress=False)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    save = torch.save
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", lambda content, file: save(content, FullDisk(file)))
        with pytest.raises(OSError, match=checkpoint.FILE_NAME) as raised:
            agent.learn(9, checkpoint_dir=tmp_path, progress=False)
    assert raised.value.errno == errno.ENOSPC
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert weights(QMIX.load(tmp_path, Archiving()).learn(9, progress=False)) == weights(straight)
    assert weights(agent) == weights(straight)  # the agent is complete and can be saved elsewhere


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = QMIX(TwoStep(), SMALL)
    before = agent.save(tmp_path).read_bytes()

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        agent.save(tmp_path)
    assert (tmp_path / checkpoint.FILE_NAME).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.FILE_NAME]


def test_weights_that_are_not_finite_are_never_written(tmp_path: Path) -> None:
    agent = QMIX(TwoStep(), SMALL)
    before = agent.save(tmp_path).read_bytes()
    with torch.no_grad():
        agent.learner.network.head.weight[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"network\.head\.weight"):
        agent.save(tmp_path)
    assert (tmp_path / checkpoint.FILE_NAME).read_bytes() == before


# Reading


@pytest.mark.parametrize("damage", ["truncated", "flipped bit", "missing"])
def test_a_damaged_newest_checkpoint_is_skipped(tmp_path: Path, damage: str) -> None:
    """A missing file: the process was killed between renaming the old file and renaming the new one."""
    straight = QMIX(Archiving(), CONFIG, seed=5).learn(9, checkpoint_dir=tmp_path, progress=False)
    path = tmp_path / checkpoint.FILE_NAME
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
        agent = QMIX.load(tmp_path, Archiving())
    else:
        if damage == "truncated":
            del content[len(content) // 2 :]
        else:
            with zipfile.ZipFile(path) as archive:
                largest = max(archive.infolist(), key=lambda info: info.file_size)
            content[largest.header_offset + largest.file_size // 2] ^= 1
        path.write_bytes(content)
        with pytest.warns(UserWarning, match=r"checkpoint\.pt.*checkpoint\.1\.pt"):
            agent = QMIX.load(tmp_path, Archiving())
    assert agent.episode == 6
    assert weights(agent.learn(9, progress=False)) == weights(straight)


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=checkpoint.FILE_NAME):
        QMIX.load(tmp_path)
    assert not QMIX.checkpoint_exists(tmp_path)


def test_a_checkpoint_of_another_environment_is_refused(tmp_path: Path) -> None:
    QMIX(Ragged(), SMALL).save(tmp_path)
    with pytest.raises(CheckpointError, match=r"n_actions.*\(4, 5\)"):
        QMIX.load(tmp_path, Ragged((4, 5)))


@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_a_directory_with_only_damaged_files_is_refused(tmp_path: Path, damage: str) -> None:
    path = QMIX(Ragged(), SMALL).save(tmp_path)
    content = path.read_bytes()
    path.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "text": b"text"}[damage])
    with pytest.raises(CheckpointError, match=checkpoint.FILE_NAME):
        QMIX.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"weights": 1}, "qmix_agent"),
        *[({"format": "qmix_agent", "version": version}, f"version {version}\\b") for version in (1, 2, 3, 99)],
        ({"format": "qmix_agent", "version": checkpoint.VERSION, "spec": {}}, checkpoint.FILE_NAME),
    ],
)
def test_files_of_other_formats_and_versions_are_refused(tmp_path: Path, content: dict[str, Any], named: str) -> None:
    torch.save(content, tmp_path / checkpoint.FILE_NAME)
    with pytest.raises(CheckpointError, match=named):
        QMIX.load(tmp_path)


class Calls:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., Any], argument: Any) -> None:
        self.call = function, (argument,)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": Calls(os.mkdir, "canary")},
        {"rows": Calls(bytearray, 10**8)},
        {"config": {"hidden_size": 2**31 - 1}},
        {"config": {"hypernet_hidden": 10**9}},
        {"spec": {"n_state": 10**12}},
        {"spec": {"n_state": -1}},
        {"spec": {"n_actions": (2**62, 2)}},
        {"learner": {"network": {}}},
        {"learner": {"updates": torch.zeros(1).expand(10**10)}},
        {"buffer": {"rewards": torch.zeros(1).expand(10**10)}},
        {"buffer": {"lengths": torch.tensor([-5, 10**9])}},
        {"buffer": {"lengths": torch.tensor([10**9])}},
        {"seed": "text"},
    ],
)
def test_checkpoints_made_to_do_harm_are_refused(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No code runs, and nothing is allocated in the sizes that the file claims."""
    monkeypatch.chdir(tmp_path)
    path = QMIX(Ragged(), SMALL).learn(2, progress=False).save(tmp_path)
    content = torch.load(path, weights_only=True)
    for key, value in changes.items():
        content[key] = {**content[key], **value} if isinstance(value, dict) else value
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt"):
        QMIX.load(tmp_path)
    assert not (tmp_path / "canary").exists()


def test_compressed_checkpoints_are_refused(tmp_path: Path) -> None:
    """A megabyte could become a gigabyte."""
    path = QMIX(Ragged(), SMALL).save(tmp_path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt"):
        QMIX.load(tmp_path)


@pytest.mark.parametrize("name", [".checkpoint.pt.writing", ".metrics.jsonl.writing", "metrics.jsonl", "checkpoint.pt"])
def test_links_in_a_folder_do_not_lead_to_files_of_the_user(name: str, tmp_path: Path) -> None:
    folder, victim = tmp_path / "run", tmp_path / "victim"
    agent = QMIX(TwoStep(), SMALL).learn(2, folder, folder, progress=False)
    victim.write_text("precious")
    for path in (folder / "metrics.jsonl", folder / name):
        path.unlink(missing_ok=True)
    (folder / name).symlink_to(victim)
    agent.learn(4, folder, folder, progress=False)
    assert victim.read_text() == "precious"
    assert not (folder / name).is_symlink()


@pytest.mark.slow
def test_a_loaded_agent_acts_the_same_in_a_new_process_without_an_environment(tmp_path: Path) -> None:
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


def test_an_agent_loaded_without_an_environment_can_only_act_and_save(tmp_path: Path) -> None:
    agent = QMIX(Archiving(), CONFIG).learn(6, progress=False)
    agent.save(tmp_path / "one")
    acting = QMIX.load(tmp_path / "one")
    for attempt in (lambda: acting.learn(9, progress=False), lambda: acting.evaluate(episodes=1)):
        with pytest.raises(ValueError, match=r"QMIX\.load"):
            attempt()
    acting.save(tmp_path / "two")
    again = QMIX.load(tmp_path / "two", Archiving())
    assert archived_lengths(again) == archived_lengths(agent)
    assert weights(again.learn(9, progress=False)) == weights(agent.learn(9, progress=False))


# Environment state


def test_a_warning_names_an_environment_that_cannot_restore_its_state(tmp_path: Path) -> None:
    QMIX(Archiving(), SMALL).learn(1, progress=False).save(tmp_path)
    with pytest.warns(UserWarning, match="Ragged"):
        QMIX.load(tmp_path, Ragged())


def test_environment_state_is_kept_exactly() -> None:
    state = {"a": [1, (2.5, None)], "b": np.arange(3, dtype=np.int16), "c": torch.ones(2), "d": np.float32(0.5)}
    back = checkpoint.decode(checkpoint.encode(state))
    assert back["a"] == [1, (2.5, None)]
    assert back["b"].dtype == np.int16
    assert back["b"].tolist() == [0, 1, 2]
    assert torch.equal(back["c"], torch.ones(2))
    assert back["d"] == 0.5


def test_environment_state_of_other_types_is_refused() -> None:
    with pytest.raises(TypeError, match=r"\['x'\]\[0\].*object"):
        checkpoint.encode({"x": [object()]})
