"""Imports follow the folders, files and functions stay small, and importing the packages has no side effects."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("prune_env", "qmix_agent")
MOST_LINES, MOST_STATEMENTS, MOST_PARAMETERS = 480, 40, 6
SETTINGS = ("Config", "Options", "Args", "Resources")
"""Ends of the names of classes that hold settings; parameters of these types are not counted."""
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
    """Return the file of every module of a package, by the name without the package."""
    root = ROOT / package
    names = {}
    for file in root.rglob("*.py"):
        parts = file.relative_to(root).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return names


def imports(package: str, name: str, file: Path) -> set[str]:
    """Return the absolute names that a module imports at its top level."""
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


def functions(package: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Yield all functions and methods of a package with their names."""
    for module, file in modules(package).items():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield f"{package}.{module}: {node.name}", node


def holds_settings(parameter: ast.arg) -> bool:
    """Return whether the annotation of a parameter names a class of settings."""
    if parameter.annotation is None:
        return False
    nodes = [node for node in ast.walk(parameter.annotation) if isinstance(node, (ast.Name, ast.Attribute))]
    return any((node.id if isinstance(node, ast.Name) else node.attr).endswith(SETTINGS) for node in nodes)


def test_folders_import_one_way() -> None:
    """The contracts stand in setup.cfg: no folder imports a later one, and the two packages are independent."""
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    done = subprocess.run([*command, "--no-cache", "setup.cfg"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("package", PACKAGES)
def test_heavy_packages_are_imported_only_when_they_are_used(package: str) -> None:
    for name, file in modules(package).items():
        found = {target.split(".")[0] for target in imports(package, name, file)}
        assert not found & HEAVY, f"{package}.{name} imports {found & HEAVY} at its top level"


@pytest.mark.parametrize("package", PACKAGES)
def test_files_stay_small(package: str) -> None:
    for name, file in modules(package).items():
        assert len(file.read_text().splitlines()) <= MOST_LINES, f"{package}.{name} holds more than one idea"


@pytest.mark.parametrize("package", PACKAGES)
def test_functions_stay_short(package: str) -> None:
    for name, function in functions(package):
        statements = sum(isinstance(node, ast.stmt) for node in ast.walk(function)) - 1
        assert statements <= MOST_STATEMENTS, f"{name} has {statements} statements; split it"


@pytest.mark.parametrize("package", PACKAGES)
def test_functions_have_few_parameters(package: str) -> None:
    for name, function in functions(package):
        arguments = function.args
        parameters = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        counted = [one.arg for one in parameters if one.arg not in ("self", "cls") and not holds_settings(one)]
        assert len(counted) <= MOST_PARAMETERS, f"{name} has the parameters {counted}; group some in a dataclass"


def test_the_main_script_stays_short() -> None:
    assert len((ROOT / "examples" / "train_qmix.py").read_text().splitlines()) < 170


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
