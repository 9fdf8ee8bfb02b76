"""Networks that are imported by name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from prune_env.deploy.import_network import import_network, network_from_file, network_from_path

SOURCE = """
import torch
from torch import nn

class Wide(nn.Sequential):
    def __init__(self, width):
        super().__init__(nn.Linear(width, 4))

def make(width=8):
    return Wide(width)

def fails():
    raise RuntimeError("one\\ntwo")

def leaves():
    raise SystemExit("bye")

model = make()
number = 3
_hidden = make
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "networks.py"
    path.write_text(SOURCE)
    return path


@pytest.fixture
def module(file: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.syspath_prepend(str(file.parent))
    monkeypatch.delitem(sys.modules, "networks", raising=False)
    return "networks"


@pytest.mark.usefixtures("untouched_rngs")
def test_functions_and_networks_by_file_or_import_path(file: Path, module: str) -> None:
    for name in ("make", "model"):
        for network in (
            import_network(f"{file}:{name}"),
            import_network(f"{module}:{name}"),
            network_from_file(str(file), name),
            network_from_path(f"{module}:{name}"),
        ):
            assert isinstance(network, nn.Sequential)
            assert network(torch.zeros(1, 8)).shape == (1, 4)


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("", "make, fails, leaves, model"),
        ("missing", "'missing'.*make"),
        ("Wide", "Wide.*'width'"),
        ("number", "number.*3 is not a callable object"),
        ("fails", r"fails.*RuntimeError: one\ntwo, in .*networks\.py, line 13"),
        ("leaves", r"leaves.*SystemExit: bye, in .*networks\.py, line 16"),
    ],
)
def test_mistakes_in_a_file_are_named(file: Path, name: str, named: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){named}") as caught:
        network_from_file(str(file), name)
    assert str(file) in str(caught.value)
    assert "_hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("nothing", "'nothing'"),
        (":make", "':make'"),
        ("networks:make()", r"'networks:make\(\)'"),
        ("no_such_package.nets:make", "no_such_package"),
        ("networks:missing", "networks:missing"),
        ("__main__:make", "__main__"),
        ("builtins:dict", "dict"),
    ],
)
@pytest.mark.usefixtures("module")
def test_mistakes_in_an_import_path_are_named(path: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        network_from_path(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.py"):
        import_network(f"{tmp_path / 'nowhere.py'}:make")
