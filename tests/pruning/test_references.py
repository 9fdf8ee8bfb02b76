"""Copies that reach layers of the original are refused by name."""

from __future__ import annotations

import collections
import copy
import functools
import logging
import types
import weakref
from collections.abc import Callable

import pytest
import torch
from small_networks import IMAGES, Direct, network
from torch import nn

from prune_env.data import DataSplits
from prune_env.pruning import PruningError, build, inspect
from prune_env.pruning.problem import PruningProblem


class Shared:
    """An object that deepcopy does not copy."""

    __slots__ = ("layer",)

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def __deepcopy__(self, memo: object) -> Shared:
        return self


class SharedNorm(nn.BatchNorm2d):
    def __deepcopy__(self, memo: object) -> SharedNorm:
        return self


class Holder(nn.Module):
    """A network that calls one of its layers through an attribute."""

    def __init__(self, hold: Callable[[nn.Module], object]) -> None:
        super().__init__()
        self.inner = network()
        self.held = hold(self.inner)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.inner(images)


@pytest.mark.parametrize(
    "hold",
    [
        lambda inner: lambda x: inner[1](x),
        lambda inner: [{"deep": functools.partial(lambda x: inner(x))}],
        lambda inner: lambda x, inner=inner: inner(x),
        weakref.ref,
        lambda inner: types.SimpleNamespace(call=lambda x: inner[0].weight * x),
        lambda inner: functools.lru_cache(lambda: inner[1]),
        lambda inner: Shared(inner[1]),
        lambda inner: weakref.WeakValueDictionary({"norm": inner[1]}),
        lambda inner: weakref.WeakSet([inner[1]]),
        lambda inner: collections.deque([lambda x: inner[1](x)]),
        lambda inner: collections.UserList([weakref.ref(inner[1])]),
        lambda inner: collections.UserDict(norm=lambda x: inner[1](x)),
        lambda inner: collections.ChainMap({"norm": lambda x: inner[1](x)}),
        lambda inner: type("Held", (), {"norm": staticmethod(lambda x: inner[1](x))}),
        lambda inner: type("Held", (), {"layers": [inner[1]]}),
    ],
)
def test_functions_that_reach_layers_are_refused(hold: Callable[[nn.Module], object]) -> None:
    model = Holder(hold).train()
    before = copy.deepcopy(model.state_dict())
    for use in (lambda: inspect(model, IMAGES), lambda: build(model, (), {}, ())):
        with pytest.raises(PruningError, match=r"\bheld\b"):
            use()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("hold", [lambda inner: inner.forward, lambda inner: functools.partial(inner[1].forward)])
def test_bound_methods_are_copied_rightly(hold: Callable[[nn.Module], object]) -> None:
    assert inspect(Holder(hold), IMAGES).groups


def closure_of_a_method(model: Direct) -> Callable[..., object]:
    return lambda self, x: model.bn(x)


def closure_of_a_helper(model: Direct) -> Callable[..., object]:
    class Helper:
        def __call__(self, x: torch.Tensor) -> object:
            return self.run(x)

        def run(self, x: torch.Tensor) -> object:
            return model.bn(x)

    model.helper = Helper()  # type: ignore[assignment]
    return lambda self, x: self.helper(x)


def class_attribute(model: Direct) -> Callable[..., object]:
    return lambda self, x: self.table["bn"](x)


@pytest.mark.parametrize(
    ("norm", "named"),
    [(closure_of_a_method, "norm"), (closure_of_a_helper, "run"), (class_attribute, "table")],
)
def test_methods_that_reach_layers_are_refused(
    norm: Callable[[Direct], object], named: str, digits: DataSplits
) -> None:
    model = Direct(1, 10).train()
    model.__class__ = type("Reaching", (Direct,), {"norm": norm(model), "table": {"bn": model.bn}})
    before = copy.deepcopy(model.state_dict())
    for use in (
        lambda: inspect(model, IMAGES[:, :1]),
        lambda: PruningProblem.create(model, digits),
        lambda: build(model, (), {}, ()),
    ):
        with pytest.raises(PruningError, match=rf"\b{named}\b"):
            use()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_layer_that_is_its_own_copy_is_named() -> None:
    with pytest.raises(PruningError, match="1: __deepcopy__"):
        build(nn.Sequential(nn.Conv2d(3, 8, 3), SharedNorm(8)), (), {}, ())


def test_objects_that_lead_elsewhere_are_no_reference() -> None:
    model = Direct(1, 10)
    made = {"unused": lambda self: model.bn, "instances": [model]}
    model.__class__ = type("Registered", (Direct,), made)
    model.logger, model.hidden = logging.getLogger("any"), [nn.Conv2d(8, 8, 1)]  # type: ignore[assignment]
    assert len(inspect(model, IMAGES[:, :1]).groups) == 1
    lstm = nn.LSTM(4, 5)  # has weak references to its parameters, which its copies make again
    assert [tuple(p.shape) for p in build(lstm, (), {}, ()).parameters()] == [tuple(p.shape) for p in lstm.parameters()]


def test_a_global_with_the_name_of_an_attribute_is_no_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "inner", network())
    assert len(inspect(Holder(lambda inner: None).eval(), IMAGES).groups) == 2
