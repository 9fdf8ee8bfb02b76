"""Copies of networks, compared with those of deepcopy."""

from __future__ import annotations

import copy
from typing import Any

import torch
from structures import hooks
from torch import nn

from prune_env.networks import create
from prune_env.pruning import build
from prune_env.pruning.copies import COMPILED, shared_copy


def test_a_copy_equals_that_of_deepcopy() -> None:
    class Odd(nn.Module):  # attributes of many types, and a second reference to a module
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.empty = nn.Conv2d(3, 8, 3), nn.Sequential()
            self.settings, self.sizes = {"deep": [1, {"er": (2, 3)}]}, [4, 5]
            self.listed = [self.conv, torch.ones(2)]
            self.register_parameter("nothing", None)
            self.register_buffer("passing", torch.arange(3.0), persistent=False)

        def __len__(self) -> int:  # makes the module false in a condition
            return 0

    model = nn.Sequential(Odd(), nn.BatchNorm2d(8), nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 4, 1)))
    model[0].conv.compile()
    ours, theirs = build(model, (), {}, ()), copy.deepcopy(model)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for mine, other, original in zip(ours.modules(), theirs.modules(), model.modules(), strict=True):
        assert type(mine) is type(other)
        assert vars(mine).keys() == vars(other).keys()
        assert mine is not original
        for name, value in vars(original).items():
            if isinstance(value, (dict, list, set)):
                assert vars(mine)[name] is not value, name
    assert ours[0].listed[0] is ours[0].conv
    assert ours[0].listed[1] is not model[0].listed[1]
    assert ours[0].settings == model[0].settings
    assert ours[0].settings["deep"] is not model[0].settings["deep"]
    assert "0.passing" in dict(ours.named_buffers())
    assert COMPILED not in vars(ours[0].conv)
    for name, tensor in model.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor)
        assert ours.state_dict()[name].data_ptr() != tensor.data_ptr()


def test_modules_whose_own_way_of_copying_uses_their_children() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.flat = [self.conv.weight]

        def __setstate__(self, state: dict[str, Any]) -> None:
            super().__setstate__(state)
            self.flat = [self.conv.weight]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x)

    for model in (torch.fx.symbolic_trace(create("resnet20").eval()), nn.Sequential(Flat(), nn.Sequential(nn.ReLU()))):
        copied = build(model, (), {}, ())
        images = torch.randn(2, 3, 32, 32)
        assert torch.equal(copied(images), model(images))
    assert copied[0].flat[0] is copied[0].conv.weight
    assert copied[0].conv.weight is not model[0].conv.weight


def test_a_shared_copy_shares_parameters_but_not_buffers() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    model.register_forward_hook(lambda *_: None)
    shared = shared_copy(model)
    for one, other in zip(shared.parameters(), model.parameters(), strict=True):
        assert one.data_ptr() == other.data_ptr()
    for one, other in zip(shared.buffers(), model.buffers(), strict=True):
        assert torch.equal(one, other)
        assert one.data_ptr() != other.data_ptr()
    assert not hooks(shared)
    assert hooks(model) == 1
