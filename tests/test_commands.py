"""Every command finds a mistake before it computes anything: one message that names it, exit status 2."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from functools import partial
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow  # each of some 160 cases imports a command
TRAIN, OWN, SINGLE = "examples/train_qmix.py", "examples/prune_your_model.py", "examples/qmix_single_file.py"
PLUG_IN = "examples/plug_in_your_own.py"
COMPARE, REPORT, FRONT = "benchmarks.compare", "benchmarks.compare.report", "benchmarks.front"
ABLATION, STRENGTH, QMIX_SPEED = "benchmarks.qmix.ablation", "benchmarks.qmix.strength", "benchmarks.qmix.speed"
SPEED, ACCURACY, MEMORY = (f"benchmarks.speed.evaluator{name}" for name in ("", "_accuracy", "_memory"))
WORKERS, SURGERY, AMC = "benchmarks.speed.workers", "benchmarks.speed.surgery", "benchmarks.speed.amc"
LEARN, JUDGE = "benchmarks.policy.train", "benchmarks.policy.judge"
WORTH, WORTH_REPORT, WEIGHTS = "benchmarks.worth", "benchmarks.worth.report", "benchmarks.check_weights"
ZOO, TABULATE = "benchmarks.make.zoo", "benchmarks.make.tabulate"
Run = Callable[[str, str], str]
NOWHERE = "/proc/x"
"""A place where not even root can write."""

PROBLEM = (TRAIN, SINGLE, COMPARE, FRONT, ABLATION, ACCURACY, WORTH)
"""The commands on a network by name."""

MISTAKES = [
    (TRAIN, "--name ../x", "../x"),
    (TRAIN, "--name ''", "name"),
    (TRAIN, "--resume --name never", "never"),
    (TRAIN, "--resume", "resume"),
    (OWN, "--data nowhere", "nowhere"),
    (SINGLE, "--tabulated --target-macs 0.4", "target_macs"),
    *[(command, "--tabulated --network vgg16", "network") for command in (TRAIN, SINGLE, COMPARE, FRONT, ABLATION)],
    (ACCURACY, "--tabulated", "tabulated"),
    *[(AMC, f"--amc . --{name}", name.split()[0]) for name in ("network vgg16", "backend processes")],
    *[(command, f"--out {NOWHERE}", NOWHERE) for command in (TRAIN, OWN, COMPARE, ZOO, TABULATE, SPEED, WORKERS)],
    *[(command, f"--out {NOWHERE}", NOWHERE) for command in (ABLATION, STRENGTH, QMIX_SPEED, FRONT)],
    (FRONT, "--methods never", "never"),
    (FRONT, "--max-plans 3", "max-plans"),
    (AMC, f"--amc . --out {NOWHERE}", NOWHERE),
    *[(command, f"--cache {NOWHERE}", NOWHERE) for command in (*PROBLEM, TABULATE, STRENGTH)],
    *[(command, "--cache other.txt", "other.txt") for command in (*PROBLEM, TABULATE)],
    *[(command, "--seed -1", "seed") for command in (TRAIN, SINGLE, PLUG_IN, ACCURACY)],
    (AMC, "--amc . --seed -1", "seed"),
    *[(command, "--network nonet", "nonet") for command in PROBLEM],
    *[(command, "--networks nonet", "nonet") for command in (SPEED, WORKERS, SURGERY)],
    (ZOO, "nonet", "nonet"),
    *[("prune_env", f"{command} nonet", "nonet") for command in ("inspect", "prune", "search", "report")],
    ("prune_env", "prune nofile.py:make", "nofile.py"),
    ("prune_env", "prune torchvision:never", "never"),
    ("prune_env", f"prune small_cnn --out {NOWHERE}", NOWHERE),
    *[(command, "--data nodata", "nodata") for command in PROBLEM],
    *[(command, "--weights nofile", "nofile") for command in PROBLEM],
    *[(command, "--workers 2", "workers") for command in PROBLEM],  # the backend is local
    (AMC, "--amc . --weights nofile", "nofile"),
    *[(command, "--device nodevice", "nodevice") for command in (*PROBLEM, SPEED, WORKERS)],
    *[(TRAIN, f"--{name} zz", "zz") for name in ("importance", "reward", "qmix.mixer", "backend")],
    *[(command, f"--{name} zz", "zz") for command in (COMPARE, FRONT, ABLATION) for name in ("importance", "reward")],
    *[(TRAIN, f"--{name} 0", name) for name in ("finalists", "distillation.epochs", "qmix.batch-size")],
    *[(TRAIN, f"--{name} nan", name) for name in ("short-epochs", "target-macs", "distillation.lr", "qmix.gamma")],
    (TRAIN, "--teacher.network nonet", "nonet"),
    (TRAIN, "--teacher.weights nofile", "teacher.network"),
    (OWN, "--episodes -1", "episodes"),
    *[(command, "--episodes 0", "episodes") for command in (SINGLE, PLUG_IN, QMIX_SPEED)],
    *[(command, "--seeds 0", "seeds") for command in (COMPARE, ABLATION, STRENGTH)],
    *[(command, "--plans 0", "plans") for command in (SPEED, ACCURACY, WORKERS)],
    *[(command, "--max-plans 0", "max_plans") for command in (COMPARE, ABLATION)],
    (MEMORY, "--measurements 0", "measurements"),
    (SURGERY, "--repeats 0", "repeats"),
    (TABULATE, "--round-to 0", "round_to"),
    (COMPARE, "--methods nomethod", "nomethod"),
    (STRENGTH, "--games nogame", "nogame"),
    (ABLATION, "--fields nofield", "nofield"),
    *[(command, f"--out {NOWHERE}", NOWHERE) for command in (LEARN, JUDGE)],
    *[(command, f"--networks {NOWHERE}", NOWHERE) for command in (LEARN, JUDGE)],
    (LEARN, "--mixer qmix", "mixer"),
    (LEARN, "--episodes 0", "episodes"),
    (JUDGE, "--policy nofile", "nofile"),
    (JUDGE, "--methods never", "never"),
    (JUDGE, "--data-sets never", "never"),
    (JUDGE, "--network nonet --policy nofile", "nofile"),
    (WORTH, f"--out {NOWHERE}", NOWHERE),
    (WORTH, "--sources never", "never"),
    (WORTH, "--teacher.network nonet", "nonet"),
    (WORTH, "--teacher.network resnet56 --teacher.weights nofile", "nofile"),
    (WORTH, "--distillation.epochs 3", "distillation.epochs"),
    (WORTH, "--found norows", "norows"),
    (WORTH_REPORT, "norows", "norows"),
    (WEIGHTS, "--weights noweights", "noweights"),
    (REPORT, "norows", "norows"),
    ("prune_env", "export norun", "norun"),
]
PACKAGES = [
    *[(command, "", "torch_pruning") for command in (SPEED, SURGERY, ZOO)],
    *[(command, "", "matplotlib") for command in (TRAIN, STRENGTH, SPEED, WORKERS)],
    (REPORT, "rows", "matplotlib"),
    (WORTH_REPORT, "rows", "matplotlib"),
    *[(WORTH, "", package) for package in ("torch_pruning", "modelopt", "torchprofile")],
    (COMPARE, "", "optuna"),
    (JUDGE, "", "cma"),
    (STRENGTH, "", "mpe2"),
    (WORKERS, "--ray", "ray"),
    *[(command, "--backend ray", "ray") for command in (TRAIN, COMPARE)],
    (ZOO, "timm/ghostnet_100", "timm"),
    (SURGERY, "--networks timm/ghostnet_100", "timm"),
    ("prune_env", "prune timm:ghostnet_100", "timm"),
    ("prune_env", "prune small_cnn", "matplotlib"),
]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs a command in an empty folder, where nothing can be trained, and returns its error."""

    def trained(*_: object, **__: object) -> None:
        raise AssertionError("an optimizer was made: something is trained")

    monkeypatch.setattr(torch.optim.Optimizer, "__init__", trained)
    monkeypatch.setenv("PRUNE_ENV_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    for package in (package for *_, package in PACKAGES if find_spec(package) is None):
        module = ModuleType(package)  # stands for the package where it is not installed
        module.__spec__ = ModuleSpec(package, None)
        monkeypatch.setitem(sys.modules, package, module)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    Path("other.txt").write_text("this is no cache of accuracies")

    def run(command: str, arguments: str) -> str:
        argv = [word.strip("'") for word in arguments.split()]
        monkeypatch.setattr(sys, "argv", [command, *argv])
        script = command.endswith(".py")
        start = (
            partial(runpy.run_path, str(ROOT / command))
            if script
            else partial(runpy.run_module, command, alter_sys=True)
        )
        with pytest.raises(SystemExit) as end:
            start(run_name="__main__")
        message = capsys.readouterr().err
        assert end.value.code == 2
        assert "Traceback" not in message
        assert {path.name for path in Path.cwd().iterdir()} <= {"other.txt"}, "nothing is left behind"
        return message

    return run


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize(("command", "arguments", "named"), MISTAKES)
def test_mistakes_are_found_before_anything_is_computed(run: Run, command: str, arguments: str, named: str) -> None:
    message = run(command, arguments)
    assert named.split(".")[-1].replace("-", "_") in message.replace("-", "_")


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize(("command", "arguments", "package"), PACKAGES)
def test_a_missing_package_is_named_first(
    run: Run, command: str, arguments: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert package in run(command, arguments)
