"""The command line: what it writes and prints, and one line for every mistake."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import nn

from prune_env import save_pruned
from prune_env.__main__ import check_images, main
from prune_env.data import DataSplits
from prune_env.deploy.record import read_record
from prune_env.pruning import forward, proof, tracing
from prune_env.pruning.problem import ProblemConfig, PruningProblem

PLAN = (16, 20, 30, 40, 100)


def status_of(arguments: list[str]) -> int:
    try:
        return main(arguments)
    except SystemExit as end:
        return int(end.code or 0)


@pytest.fixture
def run(trained: nn.Module, digits: DataSplits, tmp_path: Path) -> tuple[Path, nn.Module]:
    problem = PruningProblem.create(trained, digits, ProblemConfig(prove=False))
    network = problem.build(PLAN).eval()
    save_pruned(tmp_path / "run", network, PLAN, problem, base="small_cnn")
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


def test_export_to_int8(run: tuple[Path, nn.Module], digits: DataSplits, capsys: pytest.CaptureFixture[str]) -> None:
    folder, network = run
    assert main(["export", str(folder), "--quantise"]) == 0
    assert f"{folder / 'pruned-int8.onnx'}: " in capsys.readouterr().out
    images = digits.normalise(digits.test.images[:50]).contiguous()
    session = onnxruntime.InferenceSession(folder / "pruned-int8.onnx")
    found = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    with torch.inference_mode():
        assert (found.argmax(1) == network(images).argmax(1)).float().mean() > 0.9
    content = (folder / "pruned-int8.onnx").read_bytes()
    out = folder / "other.onnx"
    assert main(["export", str(folder), "--quantise", "--data", "digits", "--out", str(out)]) == 0
    assert (folder / "other-int8.onnx").read_bytes() == content


def test_calibration_images_are_never_noise(
    run: tuple[Path, nn.Module],
    image_folder: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = str(image_folder(train=20))
    for arguments, named in (([], "scikit-learn"), (["--data", folder], r"(3, 8, 8)"), (["--data", "mine"], "'mine'")):
        monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
        assert status_of(["export", str(run[0]), "--quantise", *arguments]) == 2
        error = capsys.readouterr().err
        assert named in error
        assert error.count("\n") == 1
    assert not list(run[0].glob("*.onnx"))


def test_images_are_those_of_the_data_set_or_fixed_noise(
    run: tuple[Path, nn.Module], digits: DataSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = read_record(run[0])
    images, description = check_images(record)
    assert torch.equal(images, digits.normalise(digits.test.images[:64]))
    assert "64" in description
    assert "digits" in description
    for change in ({"name": "mine"}, {"name": "cifar10"}, {"image_shape": [3, 8, 8]}):
        other = {**record, "data": {**record["data"], **change}}
        noise, description = check_images(other)
        assert noise.shape == (64, *other["data"]["image_shape"])
        assert torch.equal(noise, check_images(other)[0])
        assert "noise" in description
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert "noise" in check_images(record)[1]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "prune, search, report, inspect, export"),
        (["cut"], "cut"),
        (["export"], "RUN"),
        (["export", "RUN", "--format", "tflite"], "'tflite'"),
        (["export", "RUN", "--formt", "onnx"], "--formt"),
        (["export", "nowhere"], "pruned.json"),
        (["export", "RUN", "--base", "nothing"], "'nothing'"),
        (["export", "RUN", "--base", "torch.nn:Identity"], "'features.0'"),
        (["export", "RUN", "--out", "RUN/pruned.json/a.onnx"], "pruned.json"),
        (["export", "RUN", "--quantise", "--format", "torch"], "--format torch"),
        (["export", "RUN", "--data", "digits"], "--quantise"),
        (["inspect"], "NETWORK"),
        (["inspect", "small_cnn", "--shape", "1", "8"], "--shape"),
        (["inspect", "small_cnn", "--shape", "0", "8", "8"], "--shape"),
    ],
)
def test_mistakes_end_with_one_line_and_status_2(
    run: tuple[Path, nn.Module], arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of([argument.replace("RUN", str(run[0])) for argument in arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert named in printed.err


def test_ctrl_c_ends_with_status_130(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prune_env.__main__.inspect", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    assert status_of(["inspect", "small_cnn"]) == 130


def test_missing_packages(
    run: tuple[Path, nn.Module], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert status_of(["export", str(run[0])]) == 2
    assert "onnxscript" in capsys.readouterr().err
    assert not (run[0] / "pruned.onnx").exists()


@pytest.mark.slow
def test_as_a_program_and_with_a_base(digits: DataSplits, tmp_path: Path) -> None:
    (tmp_path / "somebodys.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 10))\n"
    )
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 10))
    problem = PruningProblem.create(model, digits, ProblemConfig(prove=False))
    save_pruned(tmp_path / "run", problem.build((3,)), (3,), problem)
    environment = {"PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-m", "prune_env", "export", "run", "--format=torch"]
    for extra, status in (([], 2), (["--base=somebodys:make"], 0)):
        done = subprocess.run([*command, *extra], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
    assert (tmp_path / "run" / "pruned.pt2").is_file()
    assert json.loads((tmp_path / "run" / "pruned.json").read_text())["network"]["base"] is None


def test_inspect_lists_groups_and_protected_layers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "small_cnn", "--shape", "1", "8", "8"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in out[1:6]] == [f"conv_{number}" for number in range(5)]
    assert "difference" in out[0]
    file = tmp_path / "mine.py"
    file.write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(1, 8), nn.Conv2d(8, 6, 3), nn.ReLU(),\n"
        "                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))\n"
    )
    assert main(["inspect", f"{file}:make", "--shape", "3", "16", "16", "--no-proof"]) == 0
    printed = capsys.readouterr().out
    assert "conv_0" in printed
    assert "group_norm" in printed
    assert "conv_1" not in printed


NETWORKS = """
from functools import partial
from torch import nn

class Wide(nn.Sequential):
    def __init__(self, width):
        super().__init__(nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4))

class Narrow(Wide):
    def __init__(self):
        super().__init__(8)

def make(width=8):
    return Wide(width)

def inside():
    return partial(nn.Conv2d, 3, 7)(3, groups=2)

def several_lines():
    raise RuntimeError("one\\ntwo")

def leaves():
    raise SystemExit("bye")

def plain():
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 4))

def head():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten())

model = make()
number = 3
"""


@pytest.fixture
def networks(tmp_path: Path) -> Path:
    file = tmp_path / "networks.py"
    file.write_text(NETWORKS)
    return file


@pytest.mark.parametrize("name", ["make", "Narrow", "model"])
def test_functions_classes_and_networks_can_be_inspected(
    networks: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", f"{networks}:{name}"]) == 0
    assert "conv_0" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["plain", "head"])
def test_status_1_where_nothing_can_be_pruned(networks: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The first network has no convolution, the convolution of the second one is its output."""
    assert status_of(["inspect", f"{networks}:{name}"]) == 1
    printed = capsys.readouterr().out
    assert printed
    assert "difference" not in printed, "a table without rows is not printed"


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("", "Wide, Narrow, make, inside, several_lines, leaves, plain, head, model\n"),
        (":", "Wide, Narrow, make, inside, several_lines, leaves, plain, head, model\n"),
        (":make()", "'make()'"),
        (":Wide", "'width'"),
        (":number", "3 is not a callable object"),
        (":inside", "ValueError: in_channels must be divisible by groups, in FILE, line 17"),
        (":several_lines", "RuntimeError: one two, in FILE, line 20"),
        (":leaves", "SystemExit: bye, in FILE, line 23"),
    ],
)
def test_mistakes_in_a_file_are_described_by_the_users_own_names(
    networks: Path, name: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(["inspect", f"{networks}{name}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {networks}")
    assert named.replace("FILE", str(networks)) in error
    assert error.count("\n") == 1
    assert "prune_env" not in error, "names of this package's modules"


@pytest.mark.parametrize(
    ("source", "named"),
    [
        (
            "import torch\n\ntorch.zeros(2, 3).view(4)",
            "RuntimeError: shape '[4]' is invalid for input of size 6, in FILE, line 3",
        ),
        ("raise SystemExit(3)", "SystemExit: 3, in FILE, line 1"),
        ("def make(:", "SyntaxError: invalid syntax (networks.py, line 1)"),
    ],
)
def test_a_file_that_fails_is_named_with_its_line(
    networks: Path, source: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    networks.write_text(source)
    assert status_of(["inspect", f"{networks}:make"]) == 2
    error = capsys.readouterr().err
    assert str(networks) in error
    assert named.replace("FILE", str(networks)) in error


def test_inspect_shows_excluded_layers_and_limits(capsys: pytest.CaptureFixture[str]) -> None:
    limits = ["--exclude", "*.10", "--max-rate", "features.14", "0.5", "--round-to", "8"]
    assert main(["inspect", "small_cnn", "--shape", "1", "8", "8", "--no-proof", *limits]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[1] for row in rows[1:5]] == ["features.0", "features.3", "features.7", "features.14"]
    assert "64, multiples of 8" in rows[4]
    assert "features.10" in rows[5]
    assert "excluded by" in rows[5]


def test_inspect_takes_a_network_of_torchvision(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "torchvision:squeezenet1_1", "--shape", "3", "64", "64", "--no-proof"]) == 0
    assert "features.0" in capsys.readouterr().out


@pytest.mark.parametrize("prove", [[], ["--no-proof"]])
def test_progress_of_slow_inspections_is_shown(
    prove: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (tracing, proof):
        monkeypatch.setattr(module, "progress_bar", partial(forward.progress_bar, delay=1e-9, mininterval=0))
    assert main(["inspect", "small_cnn", "--shape", "1", "8", "8", *prove]) == 0
    shown = capsys.readouterr().err
    assert "tracing" in shown
    assert ("| 3/5 [" in shown) == ("100%" in shown) == (not prove)
    assert not shown.replace("\r", "\n").split("\n")[-1].strip(), "the bar is removed at the end"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["vgg17"], "'vgg17'"),
        (["missing.py:make"], "missing.py"),
        ([f"{__file__}:wrong"], "'wrong'"),
        (["no_such_package:make"], "no_such_package"),
        (["vgg16", "--shape", "3", "8", "8"], "traced"),
    ],
)
def test_networks_that_cannot_be_inspected_end_with_one_line(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(["inspect", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert named in error
    assert error.count("\n") == 1


ROOT = Path(__file__).parent.parent
COMMANDS = ("prune", "search", "report", "inspect", "export")
ELSEWHERE = ("plug_in_rllib", "plug_in_benchmarl", "scores")
"""The first two need separate environments; the last one holds what the plug-ins share."""
SCRIPTS = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts)
    .removesuffix(".run")  # __main__ of compare and worth only calls it
    .removesuffix(".__main__"): file
    for folder in ("examples", "benchmarks")
    for file in sorted((ROOT / folder).rglob("*.py"))
    if "tyro.cli(" in file.read_text() and file.stem not in ELSEWHERE
}


@pytest.mark.slow
@pytest.mark.parametrize("program", [*SCRIPTS, "prune_env", *(f"prune_env {name}" for name in COMMANDS)])
def test_help_explains_every_option(program: str) -> None:
    file = SCRIPTS.get(program)
    script = [str(file)] if program.startswith("examples") else ["-m", *program.split()]
    done = subprocess.run(
        [sys.executable, *script, "--help"],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "120"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    if script[0] == "-m":
        assert lines[0].startswith(f"usage: python -m {program} "), "the command as it is typed"
    if file is not None:
        docstring = ast.get_docstring(ast.parse(file.read_text())) or ""
        commands = {line.strip() for line in docstring.splitlines() if "python " in line}
        assert commands
        assert commands <= {line.strip() for line in lines}, "each on a separate line"
    options: list[str] = []
    for line in lines:
        if re.match(r"(│ |  )(-|\[|[A-Z]+\b)", line):  # a name; its help is further right
            options.append(line.strip("│ "))
        elif options:
            options[-1] += f"  {line.strip('│ ')}"
    assert options
    for option in options:
        name, _, explanation = option.partition("  ")
        assert re.search("[A-Za-z]{2}", re.sub(r"\(default:.*?\)", "", explanation)), f"{name} has no help"
    for box in re.findall(r"\n╭─ \w+ options ─+╮\n│ (.*?) *│\n│ ─", "\n".join(lines)):
        assert re.fullmatch("[A-Z].*[.]", box), f"{box!r} is no sentence: it is a comment"
