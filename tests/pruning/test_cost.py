"""MACs and parameters of plans, computed without building a network."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from structures import hooks
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from prune_env.networks import create
from prune_env.pruning import Cost, PruningError, build, find_groups

LARGE = [pytest.param(name, marks=pytest.mark.slow) for name in ("alexnet", "vgg16", "resnet56")]
TOYS = ["flatten", "concat", "dense", "depthwise", "gated", "reused"]


def counted_macs(model: nn.Module, images: torch.Tensor) -> float:
    """Return the MACs for one input from PyTorch's counter, which counts two operations for each."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(images)
    return counter.get_total_flops() / 2 / len(images)


@pytest.mark.parametrize("name", ["small_cnn", "resnet20", *TOYS, *LARGE])
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 1000))
def test_cost_equals_the_flop_counter_and_the_number_of_parameters(make: Any, name: str, seed: int) -> None:
    model, images = make(name)
    groups = find_groups(model, images)
    cost = Cost(model, groups, images)
    generator = torch.Generator().manual_seed(seed)
    plan = tuple(int(torch.randint(1, group.filters + 1, (), generator=generator)) for group in groups)
    ranking = {group.name: torch.arange(group.filters) for group in groups}
    for network, of in ((model, tuple(group.filters for group in groups)), (build(model, groups, ranking, plan), plan)):
        assert cost.macs(of) == counted_macs(network, images)
        assert cost.params(of) == sum(parameter.numel() for parameter in network.parameters())
        assert cost.layer_macs(of).sum() == cost.macs(of)
        inputs, outputs = cost.layer_channels(of)
        for row, layer in enumerate(cost.layers):
            module = network.get_submodule(layer)
            sides = (
                ("in_channels", "out_channels") if isinstance(module, nn.Conv2d) else ("in_features", "out_features")
            )
            assert (inputs[row], outputs[row]) == tuple(getattr(module, side) for side in sides)


@pytest.mark.parametrize(("name", "macs"), [("vgg16", 313_196_544 + 5_120), ("resnet20", 40_551_040)])
def test_known_networks(make: Any, name: str, macs: int) -> None:
    model, images = make(name)
    groups = find_groups(model, images)
    assert Cost(model, groups, images).macs(tuple(group.filters for group in groups)) == macs


def test_convolution_without_padding() -> None:
    """30 x 30 positions times 3 x 10 kernels of 3 x 3."""
    cost = Cost(nn.Conv2d(3, 10, 3), [], torch.zeros(1, 3, 32, 32))
    assert cost.macs(()) == 243_000
    assert cost.params(()) == 280


def test_arrays_of_plans(make: Any) -> None:
    model, images = make("resnet20")
    groups = find_groups(model, images)
    cost = Cost(model, groups, images)
    plans = np.random.default_rng(0).integers(1, 17, (3, 2, len(groups)))
    macs, params, layers = cost.macs(plans), cost.params(plans), cost.layer_macs(plans)
    assert macs.shape == params.shape == (3, 2)
    assert layers.shape == (3, 2, len(cost.layers))
    assert macs.dtype == np.int64
    one = tuple(int(kept) for kept in plans[2, 1])
    assert (macs[2, 1], params[2, 1]) == (cost.macs(one), cost.params(one))
    assert type(cost.macs(one)) is int
    assert layers[2, 1].tolist() == cost.layer_macs(one).tolist()


def test_layers_are_in_forward_order(make: Any) -> None:
    model, images = make("resnet20")
    layers = Cost(model, [], images).layers
    assert layers[:3] == ("conv1", "layer1.0.conv1", "layer1.0.conv2")
    assert layers[-1] == "linear"
    assert len(layers) == 20


def test_a_plan_of_the_wrong_length(make: Any) -> None:
    model, images = make("concat")
    cost = Cost(model, find_groups(model, images), images)
    with pytest.raises(ValueError, match=r"3.*\(2,\)"):
        cost.macs((1, 2))


def test_a_network_without_layers_has_no_cost() -> None:
    with pytest.raises(PruningError):
        Cost(nn.ReLU(), [], torch.zeros(1, 3, 4, 4))


def test_the_model_does_not_change(make: Any) -> None:
    model = create("resnet20")
    state = {key: value.clone() for key, value in model.state_dict().items()}
    Cost(model, [], torch.zeros(2, 3, 32, 32))
    assert model.training
    assert not hooks(model)
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
