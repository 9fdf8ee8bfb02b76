"""Saved networks from somebody else: loading runs no code that the record names, and allocates nothing huge."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save
from torch import nn

from prune_env import load_pruned, save_pruned
from prune_env.__main__ import main
from prune_env.data import DataSplits
from prune_env.deploy.record import to_json
from prune_env.pruning.problem import ProblemConfig, PruningProblem

ROOT = Path(__file__).parents[2]
PLAN = (16, 20, 30, 40, 100)
CANARY = "from pathlib import Path\nPath({!r}).touch()\n"
Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def folder(trained: nn.Module, digits: DataSplits, tmp_path: Path) -> Path:
    problem = PruningProblem.create(trained, digits, ProblemConfig(prove=False))
    save_pruned(tmp_path / "run", problem.build(PLAN), PLAN, problem, base="small_cnn")
    return tmp_path / "run"


def edit(folder: Path, change: Change) -> None:
    record = json.loads((folder / "pruned.json").read_text())
    change(record)
    (folder / "pruned.json").write_text(to_json(record))


def replace_weights(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    weights = save(tensors)
    (folder / "pruned.safetensors").write_bytes(weights)
    digest = hashlib.blake2b(weights, digest_size=16).hexdigest()
    edit(folder, lambda record: record.update(weights_digest=digest))


@pytest.fixture
def canary(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that appears when code of the module canary_module runs; its source is next to the folder."""
    mark = tmp_path / "it-ran"
    source = (
        CANARY.format(str(mark)) + "from prune_env.networks import create\nmake = lambda: create('small_cnn', 10, 1)\n"
    )
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "canary_module.py").write_text(source)
    (folder / "canary_inside.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path / "outside"))
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("canary_module", "canary_inside", "run", "run.canary_inside"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return mark


@pytest.mark.parametrize(
    ("name", "base", "trust"),
    [
        (None, "canary_module:make", None),
        (None, "canary_module:make", "canary_module"),
        (None, "canary_module:make", "canary_module:other"),
        ("small_cnn", "canary_module:make", None),
        ("small_cnn", "canary_module:make", "canary_module:make"),
        (None, "canary_inside:make", None),
        (None, "canary_inside:make", "canary_inside:make"),
        (None, "run.canary_inside:make", "run.canary_inside:make"),
        (None, "os:abort", None),
        (None, "pdb:set_trace", None),
        ("canary_module:make", None, None),
        ("small_cnn", None, "canary_module:make"),
    ],
)
def test_code_that_a_record_names_does_not_run(
    folder: Path,
    canary: Path,
    name: str | None,
    base: str | None,
    trust: str | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    edit(folder, lambda record: record["network"].update(name=name, base=base))
    with pytest.raises(ValueError, match=(base or trust or name or "").partition(":")[0]):
        load_pruned(folder, trust_base=trust)
    with pytest.raises(SystemExit) as end:
        main(["export", str(folder), *(["--trust-base", trust] if trust else [])])
    assert end.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not canary.exists()


def test_an_exact_name_or_the_caller_s_own_network_is_accepted(folder: Path, canary: Path, trained: nn.Module) -> None:
    edit(folder, lambda record: record["network"].update(name=None, base="canary_module:make"))
    for base in (trained, lambda: trained):
        load_pruned(folder, base)
        assert not canary.exists()
    load_pruned(folder, trust_base="canary_module:make")
    assert canary.exists()


@pytest.mark.parametrize("argument", [{"base_model": 3}, {"base_model": lambda: 3}, {"trust_base": True}])
def test_arguments_of_another_type(folder: Path, argument: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=next(iter(argument))):
        load_pruned(folder, **argument)


@pytest.mark.slow
@pytest.mark.parametrize("shadowed", ["tyro", "torch", "safetensors", "json"])
def test_the_command_in_the_folder_imports_nothing_from_it(folder: Path, tmp_path: Path, shadowed: str) -> None:
    (folder / f"{shadowed}.py").write_text(CANARY.format(str(tmp_path / "it-ran")))
    command = [sys.executable, "-m", "prune_env", "export", ".", "--format=torch"]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda r: r["network"].update(num_classes=10**9), "1000000000"),
        (lambda r: r["network"].update(num_classes=10**30), "num_classes"),
        (lambda r: r["network"].update(num_classes=-1), "num_classes"),
        (lambda r: (r["network"].update(in_channels=10**5), r["data"].update(image_shape=[10**5, 8, 8])), "mean"),
        (lambda r: r["data"].update(image_shape=[1, 10**6, 10**6]), "image_shape"),
        (lambda r: r["data"].update(image_shape=[10**9, 8, 8]), "image_shape"),
        (lambda r: r["data"].update(image_shape=[1, 0, 8]), "image_shape"),
        (lambda r: r["plan"].update({"features.0": 10**9}), r"features\.0"),
        (lambda r: r["plan"].update({"__class__": 1}), "__class__"),
        (lambda r: r["plan"].update({"forward.__globals__": 1}), "__globals__"),
        (lambda r: r["kept_channels"][0].update(of=10**9), r"features\.0"),
        (lambda r: r["kept_channels"][0].update(module="__class__.__init__"), "__init__"),
        (lambda r: r["kept_channels"][0].update(side="weight"), "weight"),
        (lambda r: r["kept_channels"].append(r["kept_channels"][0]), r"features\.0"),
        (lambda r: r["kept_channels"][0]["kept"].append(2**70), "kept"),
        (lambda r: r["normalisation"].update(std=[0.0]), "std"),
    ],
)
def test_values_that_no_network_has(folder: Path, change: Change, named: str) -> None:
    edit(folder, change)
    with pytest.raises(ValueError, match=named):
        load_pruned(folder)


@pytest.mark.parametrize(
    "text",
    [
        *("[" * 10**5, '{"a": ' * 10**5, '{"format_version": 2, "format_version": 2}', "1" * 10**4, "\0"),
        *('{"a": Infinity}', '{"a": NaN}', '{"format_version": NaN}'),
    ],
)
def test_json_made_to_break_readers(folder: Path, text: str) -> None:
    (folder / "pruned.json").write_text(text)
    with pytest.raises(ValueError, match=r"pruned\.json"):
        load_pruned(folder)


@pytest.mark.slow
def test_wide_heads_and_numbers_of_another_kind_in_the_weights(folder: Path) -> None:
    tensors = load_file(folder / "pruned.safetensors")
    wrong = {**tensors, "classifier.bias": tensors["classifier.bias"].long()}
    replace_weights(folder, wrong)
    with pytest.raises(ValueError, match=r"classifier\.bias"):
        load_pruned(folder)
    replace_weights(folder, {**tensors, "wide": torch.zeros(10**7, dtype=torch.int8)})
    edit(folder, lambda record: record["network"].update(num_classes=10**7))
    with pytest.raises(ValueError, match="10000000"):
        load_pruned(folder)
    replace_weights(folder, {**tensors, "empty": torch.zeros(10**9, 0)})
    edit(folder, lambda record: record["network"].update(num_classes=10**9))
    with pytest.raises(ValueError, match="1000000000"):
        load_pruned(folder)


def test_control_characters_do_not_reach_the_terminal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(folder, lambda record: record["kept_channels"][0].update({"module": "\x1b]0;title\x07\ud800"}))
    edit(folder, lambda record: record["plan"].update({"\x1b[2J": 1.5}))
    with pytest.raises(SystemExit) as end:
        main(["export", str(folder)])
    assert end.value.code == 2
    assert capsys.readouterr().err.strip().isprintable()
