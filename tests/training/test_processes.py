"""Processes that train together get the result of one process with the same batches."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from together import COUNT, trainings

from prune_env import data
from prune_env.networks import create
from prune_env.training.fit import RunOptions, fit
from prune_env.training.processes import Processes

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Run two processes; return their folder, and what each has printed."""
    folder = tmp_path_factory.mktemp("together")
    command = [sys.executable, str(HERE / "together.py")]
    variables = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(folder)],
            cwd=HERE.parents[1],
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(COUNT)
    ]
    try:
        printed = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * COUNT, printed
    return folder, printed


@pytest.mark.slow
class TestTogether:
    @pytest.mark.parametrize("name", ["plain", "batchnorm", "muon"])
    def test_the_result_is_that_of_one_process(
        self, name: str, together: tuple[Path, list[str]], tmp_path: Path
    ) -> None:
        expected = trainings(tmp_path / "checkpoint.pt")[name]().state_dict()
        first, second = (torch.load(together[0] / f"{name}-{rank}.pt") for rank in range(COUNT))
        for key, tensor in expected.items():
            assert torch.equal(first[key], second[key]), key
            torch.testing.assert_close(first[key], tensor, rtol=1e-3, atol=1e-4, msg=key)

    def test_only_the_first_process_writes_and_shows_progress(self, together: tuple[Path, list[str]]) -> None:
        folder, printed = together
        assert [file.name for file in folder.glob("checkpoint-*")] == ["checkpoint-0.pt"]
        assert "shown" in printed[0]
        assert printed[1] == ""

    def test_all_resume_from_its_checkpoint(self, together: tuple[Path, list[str]]) -> None:
        for rank in range(COUNT):
            before, after = (torch.load(together[0] / f"{name}-{rank}.pt") for name in ("plain", "resumed"))
            assert all(torch.equal(before[key], after[key]) for key in before)

    def test_mistakes_are_named_in_all_processes(self, together: tuple[Path, list[str]]) -> None:
        for rank in range(COUNT):
            assert "training" in (together[0] / f"seed-{rank}.txt").read_text()
            assert "63" in (together[0] / f"batch-{rank}.txt").read_text()


def test_torchrun_needs_a_process_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert Processes.current().count == 1, "the variable may be another program's"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    with pytest.raises(ValueError, match="init_process_group"):
        fit(create("small_cnn", 10, 1), data.load("digits"), run=RunOptions(progress=False))


def test_parts_cover_a_batch_once() -> None:
    parts = [Processes(rank, 3).part(12) for rank in range(3)]
    assert [number for part in parts for number in range(12)[part]] == list(range(12))
