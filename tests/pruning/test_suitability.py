"""Networks whose copies would compute something else, or change the original, are refused by name."""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from small_networks import IMAGES, Direct, network
from torch import nn
from torch.nn import utils
from torch.nn.utils import parametrizations
from torch.utils._pytree import tree_leaves
from torchvision.models import resnet18
from torchvision.models.feature_extraction import create_feature_extractor

from prune_env.pruning import PruningError, build, inspect


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
def test_hooks_that_only_observe_are_dropped_without_a_warning(register: str, untouched_gpus: None) -> None:
    model, seen = network(), []
    getattr(model[2], register)(lambda *_: seen.append(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = torch.get_rng_state()
        assert inspect(model, IMAGES).groups
    assert torch.equal(before, torch.get_rng_state())
    assert seen == [1]
    assert build(model, (), {}, ())(IMAGES) is not None
    assert seen == [1]


@pytest.mark.parametrize(
    ("register", "hook"),
    [
        ("register_forward_hook", lambda module, args, output: 2 * output),
        ("register_forward_hook", lambda module, args, output: output.mul_(2) and None),
        ("register_forward_pre_hook", lambda module, args: (args[0] + 1,)),
        ("register_forward_hook", lambda module, args, output: 1 / 0),
    ],
)
def test_hooks_that_change_something_are_refused_by_name(register: str, hook: Callable[..., object]) -> None:
    model = network()
    model[0].register_forward_hook(lambda *_: None)
    getattr(model[3], register)(hook)
    with pytest.raises(PruningError, match=r"\b3\b"):
        inspect(model, IMAGES)


def test_a_hook_without_which_the_network_does_not_run_is_named() -> None:
    model = network()
    model[0].register_forward_pre_hook(lambda module, args: (args[0][:, :3],))
    with pytest.raises(PruningError, match=r"\b0\b"):
        inspect(model, torch.randn(2, 4, 8, 8))


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


def prepared_for_quantisation() -> nn.Module:
    model = network().train()
    model.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")  # type: ignore[assignment]
    return torch.ao.quantization.prepare_qat(model)


def with_lock() -> nn.Module:
    model = network()
    model[2].held = threading.Lock()
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
        (prepared_for_quantisation, "0.*quantisation"),
        (with_lock, r"held.*\b2\b"),
    ],
)
def test_unsuitable_networks_are_named(make: Callable[[], nn.Module], named: str) -> None:
    with pytest.raises(PruningError, match=named):
        inspect(make(), IMAGES)


@pytest.mark.parametrize("hold", [lambda x: x, lambda x: [x], lambda x: {"a": (x,)}, lambda x: Kept(x)])
def test_a_tensor_of_an_earlier_pass_is_copied_without_its_graph(hold: Callable[[torch.Tensor], Any]) -> None:
    model = network()
    model.last = hold(output := model(IMAGES))
    assert inspect(model, IMAGES).groups
    (copied,) = tree_leaves(vars(build(model, (), {}, ()))["last"])
    copied = copied.tensor if isinstance(copied, Kept) else copied
    assert torch.equal(copied, output)
    assert copied.grad_fn is None
    assert output.grad_fn is not None


@dataclass
class Kept:
    tensor: torch.Tensor


@pytest.mark.parametrize("example", ["abc", None, [], [IMAGES, "abc"], 3])
def test_an_example_that_is_no_tensor_is_named(example: Any) -> None:
    with pytest.raises(TypeError, match="example"):
        inspect(network(), example)


def test_an_exception_without_a_message_is_shown_with_its_line() -> None:
    class Refusing(Direct):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise AssertionError

    with pytest.raises(PruningError, match=r"test_suitability.*raise AssertionError"):
        inspect(Refusing(), IMAGES)


@pytest.mark.parametrize("size", [1, 2])
def test_a_branch_on_the_batch_size_is_traced(size: int) -> None:
    class Branching(Direct):
        def __init__(self) -> None:
            super().__init__()
            self.single = nn.Conv2d(3, 8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.bn(self.single(x) if len(x) == 1 else self.first(x))
            return self.last(x).mean((2, 3))

    model = Branching()
    (group,) = inspect(model, IMAGES[:size]).groups
    assert set(group.layers) == {"first", "single"}
    small = build(model, [group], {group.name: torch.arange(8)}, (3,))
    assert small(IMAGES).shape == (2, 4)
    assert small(IMAGES[:1]).shape == (1, 4)


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        (lambda model: parametrizations.weight_norm(model[3]), "remove_parametrizations"),
        (lambda model: utils.weight_norm(model[3]), "remove_weight_norm"),
        (lambda model: utils.spectral_norm(model[3]), "remove_spectral_norm"),
        (lambda model: utils.weight_norm(model[3], "bias"), "bias.*remove_weight_norm"),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_makes_a_computed_weight_permanent_is_named(change: Callable[[Any], object], remedy: str) -> None:
    model = network()
    change(model)
    try:
        text = str(inspect(model, IMAGES))
    except PruningError as error:
        text = str(error)
    assert re.search(f"3 .*{remedy}", text)


def test_autocast_in_forward_is_named() -> None:
    class Autocast(Direct):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return super().forward(x)

    reasons = [entry.reason for entry in inspect(Autocast(), IMAGES).protected]
    assert any("autocast" in reason for reason in reasons)


def test_a_network_that_is_one_layer_has_a_name() -> None:
    assert "the network" in str(inspect(nn.Conv2d(3, 8, 3), IMAGES))


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


def test_a_network_in_eval_mode_is_built_in_eval_mode() -> None:
    resnet = create_feature_extractor(resnet18(weights=None).eval(), ["layer1", "flatten"])
    modes = {name: module.training for name, module in resnet.named_modules()}
    found = inspect(resnet, torch.randn(2, 3, 32, 32))
    assert found.groups
    assert {name: module.training for name, module in resnet.named_modules()} == modes
