"""The command line: what it writes, what it says, and one line for every mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import nn

from prune_env import save_pruned
from prune_env.__main__ import check_images, main
from prune_env.data import DataSplits
from prune_env.pruning import build, find_groups, importance
from prune_env.saving import read_record

PLAN = (16, 20, 30, 40, 100)


@pytest.fixture
def run(trained: nn.Module, digits: DataSplits, tmp_path: Path) -> tuple[Path, nn.Module]:
    groups = find_groups(trained, digits.example_input)
    ranking = importance.ranking(importance.scores("l1", trained, groups))
    network = build(trained, groups, ranking, PLAN).eval()
    save_pruned(tmp_path / "run", network, PLAN, groups=groups, ranking=ranking, data=digits, network="small_cnn")
    return tmp_path / "run", network


def test_export_to_both_formats(
    run: tuple[Path, nn.Module], digits: DataSplits, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, network = run
    images = digits.normalise(digits.test.images[:5])
    assert main(["export", str(folder)]) == 0
    assert f"{folder / 'pruned.onnx'}: " in capsys.readouterr().out
    found = onnxruntime.InferenceSession(folder / "pruned.onnx").run(None, {"images": images.contiguous().numpy()})[0]
    other = folder / "elsewhere" / "small.pt2"
    assert main(["export", str(folder), "--format", "torch", "--out", str(other)]) == 0
    printed = capsys.readouterr()
    assert "64 test images of digits" in printed.out
    assert printed.err == ""
    with torch.inference_mode():
        expected = network(images)
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(torch.export.load(other).module()(images), expected, rtol=1e-5, atol=1e-5)
    assert {file.name for file in folder.iterdir()} == {
        *("elsewhere", "pruned.json", "pruned.onnx", "pruned.safetensors")
    }


def test_images_are_the_data_sets_or_the_same_noise(
    run: tuple[Path, nn.Module], digits: DataSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = read_record(run[0])
    images, what = check_images(record)
    assert torch.equal(images, digits.normalise(digits.test.images[:64]))
    assert what == "64 test images of digits"
    for change in ({"name": "mine"}, {"name": "cifar10"}, {"image_shape": [3, 8, 8]}):
        other = {**record, "data": {**record["data"], **change}}
        noise, what = check_images(other)
        assert noise.shape == (64, *other["data"]["image_shape"])
        assert torch.equal(noise, check_images(other)[0])
        assert "images of noise, as data" in what
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert "images of noise, as data 'digits' is not at hand" in check_images(record)[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["prune"], "invalid choice: 'prune'"),
        (["export"], "the following arguments are required: RUN"),
        (["export", "RUN", "--format", "tflite"], "invalid choice: 'tflite'"),
        (["export", "nowhere"], "pruned.json does not exist"),
        (["export", "RUN", "--base", "nothing"], "must read 'package.module:factory'"),
        (["export", "RUN", "--base", "torch.nn:Identity"], "the base has no module 'features.0'"),
        (["export", "RUN", "--out", "RUN/pruned.json/a.onnx"], "exists"),
    ],
)
def test_mistakes_end_with_one_line_and_status_2(
    run: tuple[Path, nn.Module], arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main([argument.replace("RUN", str(run[0])) for argument in arguments])
    except SystemExit as end:  # argparse's own way
        status = end.code  # type: ignore[assignment]
    printed = capsys.readouterr()
    assert status == 2
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err


def test_missing_packages(
    run: tuple[Path, nn.Module], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert main(["export", str(run[0])]) == 2
    assert 'pip install -e ".[export]"' in capsys.readouterr().err
    assert not (run[0] / "pruned.onnx").exists()


def test_as_a_program_and_with_a_base(digits: DataSplits, tmp_path: Path) -> None:
    (tmp_path / "somebodys.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 10))\n"
    )
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 10))
    groups = find_groups(model, digits.example_input)
    ranking = importance.ranking(importance.scores("l1", model, groups))
    network = build(model, groups, ranking, (3,))
    save_pruned(tmp_path / "run", network, (3,), groups=groups, ranking=ranking, data=digits)
    environment = {"PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-m", "prune_env", "export", "run", "--format=torch"]
    for extra, status in (([], 2), (["--base=somebodys:make"], 0)):
        done = subprocess.run([*command, *extra], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
    assert (tmp_path / "run" / "pruned.pt2").is_file()
    assert json.loads((tmp_path / "run" / "pruned.json").read_text())["network"]["base"] is None


def test_inspect_shows_agents_and_what_is_protected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "small_cnn", "--shape", "1", "8", "8"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split() == ["agent", "layers", "filters", "MACs", "%", "difference"]
    assert [line.split()[0] for line in out[1:6]] == [f"conv_{number}" for number in range(5)]
    assert out[-1].startswith("5 agents; at most 9")
    file = tmp_path / "mine.py"
    file.write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 6, 3), nn.ReLU(),\n"
        "                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))\n"
    )
    assert main(["inspect", f"{file}:make", "--shape", "3", "16", "16", "--no-proof"]) == 0
    printed = capsys.readouterr().out
    assert "protected  0 (8 filters): group_norm in 1 normalises across them" in printed
    assert "1 agents" in printed
    assert "not proven" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vgg17"], "network 'vgg17' is not registered; choose one of small_cnn, alexnet, vgg16"),
        (["missing.py:make"], "missing.py"),
        ([f"{__file__}:wrong"], "test_main.py has no 'wrong'"),
        (["no_such_package:make"], "no_such_package"),
        (["vgg16", "--shape", "3", "8", "8"], "cannot be traced"),
    ],
)
def test_inspect_tells_mistakes_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
