"""Copies that reach layers of the original are refused by name."""

from __future__ import annotations

import copy
import functools
import logging
import types
import weakref
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from prune_env.data import DataSplits
from prune_env.pruning import PruningError, build, inspect
from prune_env.pruning.problem import PruningProblem

IMAGES = torch.randn(2, 3, 8, 8)


def network() -> nn.Sequential:
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


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
        self.reference = hold(self.inner)

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
    ],
)
def test_functions_that_reach_layers_are_refused(hold: Callable[[nn.Module], object]) -> None:
    model = Holder(hold).train()
    before = copy.deepcopy(model.state_dict())
    for use in (lambda: inspect(model, IMAGES), lambda: build(model, (), {}, ())):
        with pytest.raises(PruningError, match="reference"):
            use()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("hold", [lambda inner: inner.forward, lambda inner: functools.partial(inner[1].forward)])
def test_bound_methods_are_copied_rightly(hold: Callable[[nn.Module], object]) -> None:
    assert inspect(Holder(hold), IMAGES).groups


class Direct(nn.Module):
    """A network whose `norm` subclasses replace; `table` belongs to the class, so copies share it."""

    table: ClassVar[dict[str, Any]]

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bn, self.last = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 10, 1)

    def norm(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.first(x)).relu()).mean((2, 3))


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


def hidden(model: Direct) -> Callable[..., object]:
    return lambda self, x: getattr(self, "tab" + "le")["bn"](x)


def hidden_in_training(model: Direct) -> Callable[..., object]:
    return lambda self, x: getattr(self, "tab" + "le")["bn"](x) if self.training else self.bn(x)


def hidden_view(model: Direct) -> Callable[..., object]:
    return lambda self, x: self.bn(x) * getattr(self, "tab" + "le")["view"][:, None, None]


def hidden_and_caught(model: Direct) -> Callable[..., object]:
    def norm(self: Direct, x: torch.Tensor) -> object:
        try:
            return getattr(self, "tab" + "le")["bn"](x)
        except ValueError:
            return x

    return norm


HIDDEN = [hidden, hidden_in_training, hidden_view, hidden_and_caught]


@pytest.mark.parametrize("norm", [closure_of_a_method, closure_of_a_helper, class_attribute, *HIDDEN])
def test_no_copy_computes_with_tensors_of_the_original(norm: Callable[[Direct], object], digits: DataSplits) -> None:
    model = Direct().train()
    table = {"bn": model.bn, "view": model.bn.weight.data}
    model.__class__ = type("Reaching", (Direct,), {"norm": norm(model), "table": table})
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(PruningError, match=r"bn|norm|run|table"):
        inspect(model, IMAGES[:, :1])
    with pytest.raises(PruningError, match=r"bn|norm|run|table"):
        PruningProblem.create(model, digits)
    if norm not in HIDDEN:  # what no code names is found only by running it
        with pytest.raises(PruningError, match=r"norm|run|table"):
            build(model, (), {}, ())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_layer_that_is_its_own_copy_is_named() -> None:
    with pytest.raises(PruningError, match="1: __deepcopy__"):
        build(nn.Sequential(nn.Conv2d(3, 8, 3), SharedNorm(8)), (), {}, ())


def test_objects_that_lead_elsewhere_are_no_reference() -> None:
    model = Direct()
    made = {"unused": lambda self: model.bn, "instances": [model]}
    model.__class__ = type("Registered", (Direct,), made)
    model.logger, model.hidden = logging.getLogger("any"), [nn.Conv2d(8, 8, 1)]  # type: ignore[assignment]
    assert len(inspect(model, IMAGES[:, :1]).groups) == 1
    lstm = nn.LSTM(4, 5)  # has weak references to its parameters, which its copies make again
    assert [tuple(p.shape) for p in build(lstm, (), {}, ()).parameters()] == [tuple(p.shape) for p in lstm.parameters()]


def test_a_global_with_the_name_of_an_attribute_is_no_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "inner", network())
    assert len(inspect(Holder(lambda inner: None).eval(), IMAGES).groups) == 2
