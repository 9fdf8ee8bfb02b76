"""Imports point one way; files stay small; importing the packages does nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("prune_env", "qmix_agent")
HEAVY = {
    "matplotlib",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "ray",
    "sklearn",
    "tensorboard",
    "torchvision",
    "PIL",
}

# From the inside out: a module may import those above it, never those below.
LAYERS = [
    {"arguments", "files", "device", "cuda_graphs", "config", "factory", "onnx_runtime"},
    {"sources"},
    {"own_data"},
    {"data"},
    {"evaluation.batchnorm", "evaluation.latency", "evaluation.metric", "evaluation"},
    {"training.muon"},
    {"training.step"},
    {"training", "training.fit"},
    {"training.distillation"},
    {"training.brief"},
    {
        "networks.alexnet",
        "networks.resnet",
        "networks.small_cnn",
        "networks.vgg",
        "networks.registry",
        "networks.pretrained",
        "networks",
    },
    {"pruning.copies"},
    {"pruning.surgery", "pruning.labels"},
    {"pruning.rules", "pruning.trace"},
    {"pruning.groups"},
    {"pruning.proof", "pruning.cost", "pruning.importance"},
    {"pruning.inspection", "pruning"},
    {"evaluation.units"},
    {"evaluation.fusion"},
    {"evaluation.program", "evaluation.silenced", "evaluation.cache"},
    {"evaluation.recorded"},
    {"evaluation.racing"},
    {"evaluation.measurer"},
    {"evaluation.workers"},
    {"evaluation.ray_workers"},
    {
        "evaluation.evaluator",
        "evaluation.table",
        "archive",
        "budget",
        "reward",
        "observation",
        "recovery",
        "report",
        "drawing",
        "saving",
        "export",
    },
    {"render", "pictures", "rounds"},
    {"checks"},
    {"env"},
    {"making"},
    {"filter_prune_v0", "single_agent", "finalise", "runs", "__main__"},
    {""},
]


def modules(package: str) -> dict[str, Path]:
    root = ROOT / package
    names = {}
    for file in root.rglob("*.py"):
        parts = file.relative_to(root).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return names


def imports(package: str, name: str, file: Path, whole_file: bool) -> set[str]:
    """Absolute names of what a module imports, at its top or anywhere in it."""
    tree = ast.parse(file.read_text())
    base = [package, *name.split(".")] if name else [package]
    if file.name != "__init__.py":
        base = base[:-1]
    found = set()
    for node in ast.walk(tree) if whole_file else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            prefix = base[: len(base) - node.level + 1] if node.level else []
            source = ".".join([*prefix, node.module] if node.module else prefix)
            found.add(source)
            found |= {f"{source}.{alias.name}" for alias in node.names}
    return found


def test_every_module_has_its_layer() -> None:
    listed = [name for layer in LAYERS for name in layer]
    assert sorted(listed) == sorted(modules("prune_env"))


def test_prune_env_imports_point_one_way() -> None:
    level = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    for name, file in modules("prune_env").items():
        if name == "":
            continue  # the package's own lazy names
        for target in imports("prune_env", name, file, whole_file=False):
            inner = target.removeprefix("prune_env.")
            if target.startswith("prune_env.") and inner in level and inner != "":
                assert level[inner] <= level[name], f"{name} imports {inner}"


@pytest.mark.parametrize(("package", "other"), [PACKAGES, PACKAGES[::-1]])
def test_the_packages_do_not_know_each_other(package: str, other: str) -> None:
    for name, file in modules(package).items():
        found = imports(package, name, file, whole_file=True)
        assert not any(target.split(".")[0] == other for target in found), f"{package}.{name} imports {other}"


@pytest.mark.parametrize("package", PACKAGES)
def test_heavy_packages_are_imported_where_they_are_used(package: str) -> None:
    for name, file in modules(package).items():
        found = {target.split(".")[0] for target in imports(package, name, file, whole_file=False)}
        assert not found & HEAVY, f"{package}.{name} imports {found & HEAVY} at its top"


@pytest.mark.parametrize("package", PACKAGES)
def test_files_stay_small(package: str) -> None:
    for name, file in modules(package).items():
        assert len(file.read_text().splitlines()) <= 420, f"{package}.{name} holds more than one idea"


def test_the_main_script_reads_top_to_bottom() -> None:
    assert len((ROOT / "examples" / "train_qmix.py").read_text().splitlines()) < 150


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_changes_nothing(package: str) -> None:
    code = f"""
import random, sys
import numpy as np, torch
before = (random.getstate(), np.random.get_state()[1].tobytes(), torch.random.get_rng_state(),
          torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled())
import {package}, pkgutil, importlib
for module in pkgutil.walk_packages({package}.__path__, "{package}."):
    importlib.import_module(module.name)
after = (random.getstate(), np.random.get_state()[1].tobytes(), torch.random.get_rng_state(),
         torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled())
assert before[:2] == after[:2] and before[3:] == after[3:] and torch.equal(before[2], after[2])
assert not set(sys.modules) & set({sorted(HEAVY)!r}), set(sys.modules) & set({sorted(HEAVY)!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
