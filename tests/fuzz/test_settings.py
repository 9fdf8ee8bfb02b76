"""Every field of every config dataclass refuses generated wrong values by name, and takes the right ones.

The dataclasses are found by a scan of all modules, so a new one is tested without a change here. The wrong values are
made from the annotation of each field.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch

import benchmarks
import prune_env
import qmix_agent
from prune_env.commands.subcommands import NetworkArgs
from prune_env.common.settings import LARGEST, Range, Settings, checked

ROOT = Path(__file__).parents[2]
EXAMPLES = ("train_qmix", "prune_your_model", "qmix_single_file")
FOREIGN = ("benchmarks.qmix.peers.torchrl", "benchmarks.qmix.peers.pymarl")
"""Modules that import packages which are not always installed; they define no settings."""
RECORDS = {"Range", "ModuleSpec", "NetworkEntry", "CombinedLoss", "ReturnScale", "EpisodeSettings", "Processes"}
"""Dataclasses with the name or the shape of settings that only the packages themselves make."""


def modules() -> Iterator[types.ModuleType]:
    for package in (prune_env, qmix_agent, benchmarks):
        yield package
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not found.name.endswith("__main__") and found.name not in FOREIGN:
                yield importlib.import_module(found.name)
    yield importlib.import_module("prune_env.__main__")
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        yield from map(importlib.import_module, EXAMPLES)
    finally:
        sys.path.remove(str(ROOT / "examples"))


def is_settings(kind: type) -> bool:
    """Return whether a dataclass holds settings: by its base, by its name, or as every field has a default."""
    if kind.__name__ in RECORDS:
        return False
    named = kind.__name__.endswith(("Config", "Args", "Options", "Settings", "Resources"))
    optional = all(one.default is not MISSING or one.default_factory is not MISSING for one in fields(kind))
    return issubclass(kind, Settings) or named or (optional and bool(fields(kind)))


def dataclasses_of_settings() -> list[type]:
    found = {
        kind: None
        for module in modules()
        for kind in vars(module).values()
        if isinstance(kind, type) and is_dataclass(kind) and kind.__module__ == module.__name__ and is_settings(kind)
    }
    return sorted(found, key=lambda kind: f"{kind.__module__}.{kind.__qualname__}")


KINDS = dataclasses_of_settings()
NUMBERS = [float("nan"), float("inf"), -float("inf"), 1e300, 10**400, -(10**400), Decimal("0.5"), Fraction(1, 2), 1j]
OTHERS = ["x", b"x", "", "\0", [], ["x"], {}, set(), object(), object, len, None, True, False, ...]


def allows(kind: Any, value: Any) -> bool:
    """Return whether an annotation allows a value. This is written without the code that is tested."""
    if get_origin(kind) is Annotated:
        inner, *extras = get_args(kind)
        limits = [extra for extra in extras if isinstance(extra, Range)]
        return allows(inner, value) and all(value in one for one in limits)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(allows(one, value) for one in arguments)
    if origin is Literal:
        return any(value == one and type(value) is type(one) for one in arguments)
    if origin is not None:
        if origin in (tuple, list) or origin.__name__ == "Sequence":
            if not isinstance(value, (list, tuple)):
                return False
            fits = arguments[-1] is Ellipsis or len(arguments) in (1, len(value))
            return fits and all(allows(arguments[0], one) for one in value)
        return callable(value) if origin is Callable or origin.__name__ == "Callable" else isinstance(value, origin)
    if kind is bool:
        return isinstance(value, bool)
    if kind in (int, float):
        number = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
        return number and -LARGEST <= value <= 2**63
    if kind is Path:
        return isinstance(value, Path) or (isinstance(value, str) and value not in ("", "\0"))
    if getattr(kind, "_is_protocol", False):
        return callable(value)
    return isinstance(value, kind)


def wrong_values(kind: Any) -> Iterator[Any]:
    """Yield values that an annotation does not allow."""
    bounds: list[Any] = []
    pending = [kind]
    while pending:
        one = pending.pop()
        for limits in (extra for extra in get_args(one) if isinstance(extra, Range)):
            bounds += [limits.low - 1, limits.high + 1, *[limits.low] * limits.above, *[limits.high] * limits.below]
        pending += [inside for inside in get_args(one) if inside is not Ellipsis and not isinstance(inside, Range)]
    values = [
        *NUMBERS,
        *OTHERS,
        *bounds,
        -1,
        0,
        0.5,
        1e9 + 0.5,
        2**70,
        np.float32("nan"),
        np.array([1, 2]),
        torch.eye(2),
    ]
    values += [[value] for value in (*NUMBERS, *bounds, None, True, object())]
    for value in values:
        plain = value.tolist() if isinstance(value, (np.generic, np.ndarray, torch.Tensor)) else value
        if not allows(kind, plain):
            yield value


def complete(kind: type, **values: Any) -> dict[str, Any]:
    """Return arguments for the fields without a default, in which `values` replace the right ones."""
    right = {"network": "small_cnn", "steps": 3, "full_plan": (8,), "rates": (0.0, 0.5), "target": 0.5}
    right |= {
        "cost": lambda plans: plans.sum(-1),
        "layers": {},
        "inputs": (3,),
        "outputs": (4,),
        "milliseconds": ((1.0,),),
    }
    right |= {"folder": Path("run"), "amc": Path("amc"), "rows": (Path("rows"),)}
    right |= {"problem": NetworkArgs(network="small_cnn"), "name": "mine"}
    needed = [one.name for one in fields(kind) if one.default is MISSING and one.default_factory is MISSING]
    return {name: right.get(name) for name in needed} | values


def annotations(kind: type) -> list[tuple[Field[Any], Any]]:
    hints = get_type_hints(kind, include_extras=True)
    return [(one, hints[one.name]) for one in fields(kind)]


CASES = [
    pytest.param(kind, one, hint, id=f"{kind.__module__}.{kind.__name__}.{one.name}")
    for kind in KINDS
    for one, hint in annotations(kind)
    if kind.__name__ != "Finaliser" or one.name in ("env", "teacher")  # the others are tested with an environment
]


def test_the_scan_finds_the_settings() -> None:
    names = {kind.__name__ for kind in KINDS}
    assert {
        "EnvConfig",
        "FitConfig",
        "Resources",
        "ProblemArgs",
        "QMIXConfig",
        "Tradeoff",
        "Inspect",
        "Export",
        "Args",
    } <= names
    checked_kinds = [kind for kind in KINDS if issubclass(kind, Settings)]
    assert {kind.__name__ for kind in KINDS if kind not in checked_kinds} == {"QMIXConfig"}


@pytest.mark.parametrize(("kind", "field", "hint"), CASES)
def test_wrong_values_are_refused_by_name(kind: type, field: Field[Any], hint: Any) -> None:
    for value in wrong_values(hint):
        with pytest.raises((ValueError, TypeError)) as caught:
            kind(**complete(kind, **{field.name: value}))
        message = str(caught.value)
        assert field.name in message, f"{value!r}: {message}"
        assert "\n" not in message
        assert len(message) < 1000


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.__name__ != "Finaliser"])  # needs an environment
def test_defaults_pass(kind: type) -> None:
    made = kind(**complete(kind))
    same = kind(**{one.name: getattr(made, one.name) for one in fields(kind)})
    assert repr(same) == repr(made)


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (int, np.int64(3), 3),
        (float, np.float64(0.25), 0.25),
        (float, torch.tensor(0.25), 0.25),
        (float, 3, 3),  # stays a whole number: file names are made from the repr of settings
        (bool, np.bool_(True), True),
        (str, np.str_("l1"), "l1"),
        (tuple[float, ...], [0.0, np.float64(0.5)], (0.0, 0.5)),
        (tuple[float, ...], np.array([0.0, 0.5]), (0.0, 0.5)),
        (Path | None, "runs", Path("runs")),
        (int | None, None, None),
        (Literal["a", "b"], "b", "b"),
    ],
)
def test_equal_values_of_other_types_are_converted(kind: Any, value: Any, expected: Any) -> None:
    found = checked("name", value, kind)
    assert (found, type(found)) == (expected, type(expected))


@pytest.mark.slow
def test_number_of_values() -> None:
    counts = {case.id: len(list(wrong_values(case.values[2]))) for case in CASES}
    assert len(counts) > 250
    assert min(counts.values()) > 5
