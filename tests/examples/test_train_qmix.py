"""The main script, as a user runs it: to the end, killed and resumed, refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import nn

from prune_env import load_pruned

ROOT = Path(__file__).parents[2]
SMALL = [
    "--latency.timing.warmup=0",
    "--latency.timing.seconds=0",
    "--latency.timing.min-runs=1",
    "--episodes=30",
    "--finalists=2",
    "--short-epochs=0.5",
    "--reward-images=100",
    "--distillation.min-steps=40",
    "--distillation.epochs=2",
    "--qmix.checkpoint-every=4",
    "--qmix.learning-starts=8",
    "--qmix.batch-size=8",
]


@pytest.fixture(scope="module")
def weights(trained: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("weights") / "small_cnn.pt"
    torch.save(trained.state_dict(), file)
    return file


def command(out: Path, weights: Path, *extra: str) -> list[str]:
    script = str(ROOT / "examples" / "train_qmix.py")
    return [sys.executable, script, f"--out={out}", "--name=run", f"--weights={weights}", *SMALL, *extra]


def run(*arguments: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=500, cwd=ROOT)


def results(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return everything that two equal runs have in common."""
    record = json.loads((folder / "pruned.json").read_text())
    record["metrics"] = {name: value for name, value in record["metrics"].items() if "latency" not in name}
    record["metrics"].pop("search_seconds")
    record.pop("digest")  # of the seconds, too
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row.pop("seconds")
    return record, rows


@pytest.fixture(scope="module")
def finished(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("runs")
    done = run(out, weights)
    assert done.returncode == 0, done.stderr
    return out / "run", done.stdout


@pytest.mark.slow
class TestMainScript:
    def test_it_writes_everything_and_prints_the_table(self, finished: tuple[Path, str]) -> None:
        folder, printed = finished
        for name in ("learning.png", "layers.png", "tradeoff.png"):
            assert (folder / name).read_bytes().startswith(b"\x89PNG")
        assert list(folder.glob("events.out.tfevents.*"))
        record, rows = results(folder)
        metrics = record["metrics"]
        assert [row["episode"] for row in rows] == list(range(1, 31))
        assert 0.49 <= metrics["macs_ratio"] <= 0.5
        assert 0 < metrics["params_ratio"] < 1
        for name in ("original_accuracy", "pruned_accuracy", "uniform_accuracy"):
            assert 0.5 < metrics[name] <= 1
        assert (folder / "checkpoint").is_dir()
        for word in ("original", "uniform L1", "QMIX", "Accuracy", "Latency"):
            assert word in printed
        assert f"{100 * metrics['pruned_accuracy']:.2f} %" in printed
        assert re.search(r"^Minutes: loading and proof \d.*, search \d.*, distillation \d", printed, re.MULTILINE)
        assert "torch, ms" in printed
        assert "ONNX, ms" in printed

    def test_its_onnx_file_is_the_network(self, finished: tuple[Path, str], digits: Any) -> None:
        session = onnxruntime.InferenceSession(finished[0] / "pruned.onnx")
        images = digits.normalise(digits.test.images[:7]).contiguous()
        found = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
        with torch.inference_mode():
            torch.testing.assert_close(found, load_pruned(finished[0])(images), rtol=1e-4, atol=1e-4)

    def test_without_the_extra_and_with_rounding(self, weights: Path, tmp_path: Path) -> None:
        """The reason is printed."""
        arguments = command(tmp_path, weights, "--round-to=8")[1:]
        code = "import sys, runpy; sys.modules['onnxscript'] = None; runpy.run_path(sys.argv[0], run_name='__main__')"
        code = f"import sys; sys.argv = {arguments!r}; {code}"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=500, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        assert re.search(r"No ONNX file: .*onnxscript", done.stdout)
        assert "ONNX, ms" not in done.stdout
        assert not (tmp_path / "run" / "pruned.onnx").exists()
        kept = json.loads((tmp_path / "run" / "pruned.json").read_text())["plan"].values()
        assert all(filters % 8 == 0 for filters in kept)

    def test_the_saved_network_scores_what_the_record_says(self, finished: tuple[Path, str], digits: Any) -> None:
        record, _ = results(finished[0])
        network = load_pruned(finished[0])
        with torch.inference_mode():
            right = (network(digits.normalise(digits.test.images)).argmax(1) == digits.test.labels).float().mean()
        assert float(right) == pytest.approx(record["metrics"]["pruned_accuracy"], abs=1e-6)

    def test_one_search_ends_with_a_network_for_every_budget(self, weights: Path, tmp_path: Path) -> None:
        done = run(tmp_path, weights, "--target-macs", "0.3", "0.6", "--qmix.imagined-episodes=4")
        assert done.returncode == 0, done.stderr
        folder = tmp_path / "run"
        assert (folder / "front.png").read_bytes().startswith(b"\x89PNG")
        for target in (0.3, 0.6):
            own = folder / f"macs-{target}"
            metrics = json.loads((own / "pruned.json").read_text())["metrics"]
            assert target - 0.01 <= metrics["macs_ratio"] <= target
            assert sum(parameter.numel() for parameter in load_pruned(own).parameters()) > 0
            assert (own / "pruned.onnx").is_file()
            for name in ("uniform L1", "QMIX"):
                assert re.search(rf"^{name}( = least change)? {100 * target:g} % ", done.stdout, re.MULTILINE)
            assert f"{100 * metrics['pruned_accuracy']:.2f} %" in done.stdout
        assert not (folder / "pruned.json").exists()

    def test_killed_and_resumed_ends_like_an_undisturbed_run(
        self, finished: tuple[Path, str], weights: Path, tmp_path: Path
    ) -> None:
        process = subprocess.Popen(command(tmp_path, weights), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        rows = tmp_path / "run" / "metrics.jsonl"
        deadline = time.monotonic() + 300
        while not rows.is_file() or len(rows.read_text().splitlines()) < 14:
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "run" / "pruned.json").exists()
        resumed = run(tmp_path, weights, "--resume")
        assert resumed.returncode == 0, resumed.stderr
        assert results(tmp_path / "run") == results(finished[0])

    def test_ctrl_c_keeps_a_checkpoint(self, weights: Path, tmp_path: Path) -> None:
        process = subprocess.Popen(
            command(tmp_path, weights),
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # background shells ignore it
        )
        rows = tmp_path / "run" / "metrics.jsonl"
        while not rows.is_file() or len(rows.read_text().splitlines()) < 2:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 130
        assert "--resume" in errors.decode()
        assert "Traceback" not in errors.decode()
        assert list((tmp_path / "run" / "checkpoint").iterdir())

    def test_a_run_is_never_overwritten(self, finished: tuple[Path, str], weights: Path) -> None:
        again = run(finished[0].parent, weights)
        assert again.returncode == 2
        assert str(finished[0]) in again.stderr
        assert "--resume" in again.stderr
        assert "Traceback" not in again.stderr
        other = run(finished[0].parent, weights, "--resume", "--seed=5")
        assert other.returncode == 2
        assert "seed: 0 in the run, 5 now" in other.stderr
        assert "Traceback" not in other.stderr

    def test_the_checkpoint_of_another_run_is_refused(
        self, finished: tuple[Path, str], weights: Path, tmp_path: Path
    ) -> None:
        """Also where no log is there to compare it with."""
        shutil.copytree(finished[0], tmp_path / "run")
        (tmp_path / "run" / "metrics.jsonl").unlink()
        file = tmp_path / "run" / "checkpoint" / "checkpoint.pt"
        content = torch.load(file, weights_only=True)
        content["config"]["gamma"] = 0.5
        torch.save({**content, "seed": 5}, file)
        done = run(tmp_path, weights, "--resume")
        assert done.returncode == 2
        assert done.stderr.strip().count("\n") == 0
        for named in (str(file.parent), "seed: 5", "gamma: 0.5"):
            assert named in done.stderr

    def test_too_little_space_is_an_error_before_the_search(self, weights: Path, tmp_path: Path) -> None:
        arguments = command(tmp_path, weights)[1:]
        code = "import runpy, shutil, sys; shutil.disk_usage = lambda _: shutil._ntuple_diskusage(0, 0, 4 * 2**20)"
        code = f"{code}; sys.argv = {arguments!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=500, cwd=ROOT)
        assert done.returncode == 2
        assert done.stderr.strip().count("\n") == 0
        assert str(tmp_path / "run") in done.stderr
        assert not (tmp_path / "run" / "metrics.jsonl").exists()

    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            (["--finalists=0"], "finalists"),
            (["--max-cycles=2"], "max-cycles"),
            (["--device=nonsense"], "nonsense"),
            (["--reward=tradeoff"], "tradeoff"),
            (["--reward=tradeoff", "--target-macs=None"], "target-macs"),
            (["--resume"], "small_cnn-digits-0"),
            (["--data=/nowhere"], "/nowhere"),
            (["--network=vgg19"], "vgg19"),
            (["--network=vgg16"], "32x32"),
            (["--target-macs=0.00001"], "target_macs=1e-05"),
        ],
    )
    def test_mistakes_end_with_one_line(self, arguments: list[str], named: str, tmp_path: Path) -> None:
        script = str(ROOT / "examples" / "train_qmix.py")
        done = subprocess.run(
            [sys.executable, script, f"--out={tmp_path}", *arguments],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=os.environ,
            timeout=300,
        )
        assert done.returncode == 2
        assert named in " ".join(done.stderr.replace("│", " ").split())  # tyro frames its own errors
        assert "Traceback" not in done.stderr
