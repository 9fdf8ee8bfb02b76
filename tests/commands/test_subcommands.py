"""prune, search and report: one command from a network of your own to its pruned network."""

from __future__ import annotations

import configparser
import importlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

from prune_env import load_pruned, make_env
from prune_env.__main__ import main
from prune_env.data import DataSplits
from prune_env.game.arguments import ProblemArgs
from prune_env.training.pretrained import pretrained

SMALL = [
    "--latency.timing.warmup=0",
    "--latency.timing.seconds=0",
    "--latency.timing.min-runs=1",
    "--episodes=6",
    "--finalists=1",
    "--short-epochs=0.2",
    "--reward-images=60",
    "--calibration-images=100",
    "--distillation.epochs=0.2",
    "--distillation.min-steps=4",
    "--distillation.batch-size=32",
    "--qmix.learning-starts=4",
    "--qmix.batch-size=4",
    "--name=run",
]
LIMITS = ["--exclude", "features.0", "--max-rate", "*.14", "0.5", "--min-filters", "*", "8", "--round-to", "1"]
OWN_NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 16, 3), nn.Linear(16, 10)

    def forward(self, x):
        return self.head(self.second(self.first(x).relu()).relu().mean((2, 3)))
"""
FEWEST = np.array([8, 8, 8, 64])


@pytest.fixture
def network(trained: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Write a file that makes the trained network with fresh weights, and its weights; go to their folder."""
    (tmp_path / "net.py").write_text(
        "from prune_env.networks import create\ndef make():\n    return create('small_cnn', 10, 1, seed=5)\n"
    )
    torch.save(trained.state_dict(), tmp_path / "w.pt")
    monkeypatch.chdir(tmp_path)
    return "net.py:make"


@pytest.fixture
def photos(digits: DataSplits, tmp_path: Path) -> list[str]:
    """Write a folder of digits, and return the arguments that read it as the network saw them in training."""
    for part, split, count in (("train", digits.train, 20), ("test", digits.test, 4)):
        for label, name in enumerate(digits.classes):
            folder = tmp_path / "photos" / part / name
            folder.mkdir(parents=True)
            for number, image in enumerate(split.images[split.labels == label][:count]):
                Image.fromarray(image[0].numpy()).save(folder / f"{number}.png")
    return ["--data", "photos", "--mean", str(digits.mean[0]), "--std", str(digits.std[0])]


def test_a_search_prints_and_saves_plans_within_the_limits(
    network: str, photos: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", network, "--weights", "w.pt", *photos, *LIMITS, *SMALL]) == 0
    printed = capsys.readouterr().out
    entries = json.loads(Path("runs/run/plans.json").read_text())
    assert entries
    for entry in entries:
        assert (np.array(entry["plan"]) >= FEWEST).all()
        assert 0.48 <= entry["macs_ratio"] <= 0.5
        assert list(entry["layers"]) == ["features.3", "features.7", "features.10", "features.14"]
    assert [entry["accuracy"] for entry in entries] == sorted((entry["accuracy"] for entry in entries), reverse=True)
    assert str(tuple(entries[0]["plan"])) in printed
    assert "uniform" in printed
    assert not Path("runs/run/pruned.json").exists()


@pytest.mark.slow
def test_without_episodes_the_only_plan_of_a_budget_is_that_of_least_change(
    network: str, photos: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [network, "--weights", "w.pt", *photos, *SMALL, "--target-macs", "0.3", "0.5", "--no-prove"]
    assert main(["prune", *arguments, "--episodes=0"]) == 0
    for target in (0.3, 0.5):
        folder = Path(f"runs/run/macs-{target}")
        assert json.loads((folder / "pruned.json").read_text())["metrics"]["macs_ratio"] <= target
        assert sorted(file.name for file in folder.glob("*.png")) == ["layers.png", "tradeoff.png"]
    assert "2 plans" in capsys.readouterr().out


@pytest.mark.slow
def test_a_budget_of_latency_is_measured_once_and_reported(
    network: str, photos: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    timing = ["--latency.runtime=torch", "--latency.timing.seconds=0", "--latency.timing.threads=1"]
    arguments = [network, "--weights", "w.pt", *photos, *SMALL, "--target-latency", "1.0", *timing, "--no-prove"]
    assert main(["search", *arguments, "--episodes=0"]) == 0
    assert "torch, batch size 1" in capsys.readouterr().out
    table = Path("runs/run/latency_table.json").read_bytes()
    assert main(["prune", *arguments, "--episodes=0", "--resume"]) == 0
    assert Path("runs/run/latency_table.json").read_bytes() == table
    predicted = re.search(
        r"Predicted latency.*: uniform L1 ([\d.]+) %, least change ([\d.]+) %", capsys.readouterr().out
    )
    assert predicted
    assert all(float(share) == 100 for share in predicted.groups())
    entries = json.loads(Path("runs/run/plans.json").read_text())
    assert [entry["target_latency"] for entry in entries] == [1.0]


@pytest.mark.slow
def test_what_follows_a_search_may_change(network: str, photos: list[str]) -> None:
    arguments = [network, "--weights", "w.pt", *photos, *SMALL, "--episodes=0", "--no-prove"]
    assert main(["search", *arguments]) == 0
    other = ["--resume", "--distillation.epochs=0.4", "--finalists=2", "--latency.timing.min-runs=2"]
    assert main(["prune", *arguments, *other]) == 0
    config = json.loads(Path("runs/run/config.json").read_text())
    assert (config["distillation"]["epochs"], config["finalists"]) == (0.4, 2)
    metrics = json.loads(Path("runs/run/pruned.json").read_text())["metrics"]
    assert all(metrics[f"{name}_onnx_latency_1_ms"] > 0 for name in ("original", "uniform", "pruned"))
    minutes = json.loads(Path("runs/run/minutes.json").read_text())
    assert list(minutes) == ["loading and proof", "search", "distillation", "test", "export and timing"]


def test_an_interrupted_start_is_resumed(
    network: str, photos: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [network, "--weights", "w.pt", *photos, *SMALL, "--episodes=0", "--no-prove"]

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ProblemArgs, "make_env", interrupt)
        with pytest.raises(SystemExit) as end:
            main(["search", *arguments])
    assert end.value.code == 130
    assert "--resume" in capsys.readouterr().err
    assert main(["search", *arguments, "--resume"]) == 0


def test_several_processes_are_refused_before_anything_is_loaded(
    network: str, photos: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as end:
        main(["prune", network, "--weights", "w.pt", *photos, *SMALL])
    assert end.value.code == 2
    assert "torchrun" in capsys.readouterr().err
    assert not Path("runs/run").exists()


@pytest.mark.slow
def test_workers_find_a_class_of_the_users_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_net.py").write_text(OWN_NET)
    monkeypatch.chdir(tmp_path)
    workers = ["--backend=processes", "--workers=1"]
    search = ["search", "own_net.py:Net", *SMALL, "--episodes=0", "--no-prove", *workers, "--finalists=1"]
    assert main(search) == 0
    assert len(json.loads(Path("runs/run/plans.json").read_text())) == 1


def test_the_tabulated_problem_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["search", "small_cnn", "--tabulated", "--target-macs=0.2", "--episodes=0", "--name=run"]) == 0
    assert len(json.loads(Path("runs/run/plans.json").read_text())) == 1


def test_a_start_that_fails_leaves_no_run(network: str, photos: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["search", network, "--weights", "w.pt", *photos, "--target-macs", "0.001", "--no-prove"]
    assert "0.001" in failure(arguments, capsys)
    assert not list(Path("runs").iterdir())


@pytest.mark.slow
def test_prune_continues_a_search_and_ends_with_everything(
    network: str, photos: list[str], trained: nn.Module, digits: DataSplits, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [network, "--weights", "w.pt", *photos, *LIMITS, *SMALL]
    assert main(["search", *arguments]) == 0
    found = json.loads(Path("runs/run/plans.json").read_text())
    assert main(["prune", *arguments, "--resume", "--quantise"]) == 0
    folder = Path("runs/run")
    for name in ("learning.png", "layers.png", "tradeoff.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    record = json.loads((folder / "pruned.json").read_text())
    assert record["plan"] in [entry["layers"] for entry in found], "no further episode was played"
    pruned = load_pruned(folder, base_model=trained)
    images = digits.normalise(digits.test.images[:5]).contiguous()
    session = onnxruntime.InferenceSession(folder / "pruned.onnx")
    with torch.inference_mode():
        torch.testing.assert_close(
            torch.from_numpy(session.run(None, {"images": images.numpy()})[0]), pruned(images), rtol=1e-4, atol=1e-4
        )
    metrics = record["metrics"]
    assert metrics["pruned_int8_bytes"] == (folder / "pruned-int8.onnx").stat().st_size
    assert metrics["pruned_int8_bytes"] < metrics["original_int8_bytes"] < metrics["original_onnx_bytes"]
    assert abs(metrics["pruned_int8_accuracy"] - metrics["pruned_accuracy"]) < 0.1
    assert metrics["original_int8_latency_1_ms"] > 0
    printed = capsys.readouterr().out
    assert main(["report", str(folder)]) == 0
    table = capsys.readouterr().out
    assert "QMIX" in table
    assert "int8" in table
    assert table in printed
    assert main(["export", str(folder), "--base", network, "--format", "torch"]) == 0


def failure(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "NETWORK"),
        (["nonet"], "'nonet'"),
        (["net.py"], "net.py"),
        (["nofile.py:make"], "nofile.py"),
        (["torchvision:resnet19"], "resnet18"),
        (["timm:resnet18"], "timm"),
        (["net.py:make", "--weights", "nofile.pt"], "nofile.pt"),
        (["net.py:make", "--data", "nodata"], "nodata"),
        (["net.py:make", "--size", "0"], "size"),
        (["small_cnn", "--size", "8", "--data", "digits"], "size"),
        (["net.py:make", "--target-macs", "None", "--reward", "amc"], "target-macs"),
        (["net.py:make", "--data", "digits", "--exclude", "conv9"], "features.0, features.3"),
        (["net.py:make", "--data", "digits", "--min-filters", "conv9", "4"], "features.0, features.3"),
    ],
)
@pytest.mark.parametrize("command", ["prune", "search"])
def test_mistakes_end_with_one_line(
    network: str,
    command: str,
    arguments: list[str],
    named: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert named in failure([command, *arguments, "--no-prove"] if arguments else [command], capsys)


def test_int8_needs_its_packages_before_anything_is_computed(
    network: str, photos: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "onnxruntime" in failure(["prune", network, *photos, "--quantise"], capsys)
    assert not Path("runs").exists()


def test_report_needs_a_finished_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "summary.txt" in failure(["report", str(tmp_path)], capsys)


@pytest.mark.parametrize(
    ("name", "title", "base"),
    [
        ("small_cnn", "small_cnn", "small_cnn"),
        ("net.py:make", "net-make", None),
        ("models/net.py:make", "net-make", None),
        ("torch.nn:Identity", "torch.nn-Identity", "torch.nn:Identity"),
        ("torchvision:resnet18", "torchvision-resnet18", None),
    ],
)
def test_names_of_folders_and_of_saved_networks(network: str, name: str, title: str, base: str | None) -> None:
    Path("models").mkdir()
    Path("models/net.py").touch()
    args = ProblemArgs(network=name)
    assert (args.title, args.base) == (title, base)


def test_networks_of_torchvision(digits: DataSplits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With weights of a file they have the classes of the data; without, the package's own weights."""
    made: list[dict[str, Any]] = []

    def get_model(name: str, **options: Any) -> nn.Module:
        made.append({"name": name, **options})
        return nn.Sequential(nn.Flatten(), nn.Linear(64, options.get("num_classes", 1000)))

    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).state_dict(), tmp_path / "w.pt")
    model = pretrained("torchvision:resnet18", digits, tmp_path / "w.pt")
    assert model(digits.example_input).shape == (2, 10)
    pretrained("torchvision:resnet18", digits)
    assert made == [
        {"name": "resnet18", "weights": None, "num_classes": 10},
        {"name": "resnet18", "weights": "DEFAULT"},
    ]
    with pytest.raises(ValueError, match=r"\(2, 1000\).* 10 classes"):
        make_env("torchvision:resnet18", digits, prove=False)


def test_the_normalisation_of_a_torchvision_network_is_that_of_its_training(image_folder: Callable[..., Path]) -> None:
    folder = str(image_folder(train=20))
    assert ProblemArgs(network="torchvision:resnet18", data=folder).load_data().mean == (0.485, 0.456, 0.406)
    assert ProblemArgs(network="torchvision:resnet18", data=folder, mean="none").load_data().mean == (0, 0, 0)


def test_photos_of_any_size_are_resized(image_folder: Callable[..., Path]) -> None:
    folder = image_folder(train=20)
    Image.new("RGB", (30, 12)).save(folder / "train" / "cat" / "wide.png")
    data = ProblemArgs(network="torchvision:resnet18", data=str(folder), size=6).load_data()
    assert data.image_shape == (3, 6, 6)
    assert (data.name, data.classes) == ("images", ("cat", "dog"))


def test_the_console_script_is_the_command() -> None:
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parents[2] / "setup.cfg")
    name, _, target = setup["options.entry_points"]["console_scripts"].strip().partition(" = ")
    module, _, function = target.partition(":")
    assert name == "prune-env"
    assert getattr(importlib.import_module(module), function) is main
