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


def modules(package: str) -> dict[str, Path]:
    root = ROOT / package
    names = {}
    for file in root.rglob("*.py"):
        parts = file.relative_to(root).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return names


def imports(package: str, name: str, file: Path) -> set[str]:
    """Absolute names of what a module imports at its top."""
    tree = ast.parse(file.read_text())
    base = [package, *name.split(".")] if name else [package]
    if file.name != "__init__.py":
        base = base[:-1]
    found = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            prefix = base[: len(base) - node.level + 1] if node.level else []
            source = ".".join([*prefix, node.module] if node.module else prefix)
            found.add(source)
            found |= {f"{source}.{alias.name}" for alias in node.names}
    return found


def test_folders_import_one_way() -> None:
    """The contracts are in setup.cfg: a folder never imports a later one, and the two packages are independent."""
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    done = subprocess.run([*command, "--no-cache", "setup.cfg"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("package", PACKAGES)
def test_heavy_packages_are_imported_where_they_are_used(package: str) -> None:
    for name, file in modules(package).items():
        found = {target.split(".")[0] for target in imports(package, name, file)}
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
