"""Networks whose copies would compute something else, or change the original, are refused by name."""

from __future__ import annotations

import copy
import functools
import types
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torchvision.models import resnet18
from torchvision.models.feature_extraction import create_feature_extractor

from prune_env.pruning import PruningError, build, inspect

IMAGES = torch.randn(2, 3, 8, 8)


def network() -> nn.Sequential:
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


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
    ],
)
def test_functions_that_reach_layers_are_refused(hold: Callable[[nn.Module], object]) -> None:
    model = Holder(hold).train()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(PruningError, match="reference"):
        inspect(model, IMAGES)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("hold", [lambda inner: inner.forward, lambda inner: functools.partial(inner[1].forward)])
def test_bound_methods_are_copied_rightly(hold: Callable[[nn.Module], object]) -> None:
    assert inspect(Holder(hold), IMAGES).groups


def test_a_wrapper_that_delegates_attributes_stays() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.compile(network())

        def __getattr__(self, name: str) -> object:
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(super().__getattr__("inner"), name)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return 2 * self.inner(images)

    copied = build(Scaled(), (), {}, ())
    assert type(copied) is Scaled
    assert inspect(Scaled(), IMAGES).groups


def test_compiled_networks_and_parts() -> None:
    plain = len(inspect(network(), IMAGES).groups)
    assert len(inspect(torch.compile(network()), IMAGES).groups) == plain
    assert len(inspect(nn.Sequential(torch.compile(network()), nn.ReLU()), IMAGES).groups) == plain


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_forward_hooks_are_named(register: str) -> None:
    model = network()
    getattr(model[2], register)(lambda *_: None)
    with pytest.warns(UserWarning, match="hooks of 2 "):
        inspect(model, IMAGES)


def test_a_replaced_forward_is_named() -> None:
    model = network()
    model[2].forward = lambda x: x * 2  # type: ignore[method-assign]
    with pytest.raises(PruningError, match="2 "):
        inspect(model, IMAGES)


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyConv2d(8, 3), nn.Conv2d(8, 8, 3))


def with_nan() -> nn.Module:
    model = network()
    model[3].weight.data[0] = float("nan")
    return model


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: torch.jit.trace(network().eval(), IMAGES), "torch.jit"),
        (lambda: torch.jit.script(network()), "torch.jit"),
        (lambda: torch.export.export(network().eval(), (IMAGES,)).module(), "torch.export"),
        (lambda: network().to("meta"), "meta"),
        (lazy, "0 .*weight"),
        (with_nan, "3 .*weight"),
        (nn.Flatten, "parameters"),
    ],
)
def test_unsuitable_networks_are_named(make: Callable[[], nn.Module], named: str) -> None:
    with pytest.raises(PruningError, match=named):
        inspect(make(), IMAGES)


def test_a_tensor_of_an_earlier_pass_is_copied_without_its_graph() -> None:
    model = network()
    model.last = model(IMAGES)
    assert inspect(model, IMAGES).groups
    assert model.last.grad_fn is not None


def test_a_structure_that_differs_in_training_is_traced() -> None:
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            first, second = self.first(images), self.second(images)
            if self.training:
                return self.last(first + second)
            return self.last(first) + second.mean()

    layers = [set(group.layers) for group in inspect(Skip(), IMAGES, prove=False).groups]
    assert not any(len(found & {"first", "second"}) == 1 for found in layers)


def test_a_global_with_the_name_of_an_attribute_is_no_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "inner", network())
    assert len(inspect(Holder(lambda inner: None).eval(), IMAGES).groups) == 2


def test_a_network_in_eval_mode_is_built_in_eval_mode() -> None:
    resnet = create_feature_extractor(resnet18(weights=None).eval(), ["layer1", "flatten"])
    modes = {name: module.training for name, module in resnet.named_modules()}
    found = inspect(resnet, torch.randn(2, 3, 32, 32))
    assert found.groups
    assert {name: module.training for name, module in resnet.named_modules()} == modes
