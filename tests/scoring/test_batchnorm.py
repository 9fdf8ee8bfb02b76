"""Recalibration of BatchNorm statistics, and folding of BatchNorm layers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from prune_env.networks import create, list_networks
from prune_env.networks.registry import image_size
from prune_env.scoring.batchnorm import (
    even_batches,
    fold,
    folding_pairs,
    outputs_agree,
    randomise_batchnorms,
    recalibrate,
)


def trained_like(model: nn.Module) -> nn.Module:
    """Give every BatchNorm statistics, scales and shifts that differ from the initial ones, as after training."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5, generator=generator)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(0, 0.2, generator=generator)
    return model.eval()


def test_batches_have_nearly_one_size() -> None:
    batches = even_batches(torch.arange(1001.0).view(-1, 1, 1, 1), 250)
    assert [len(batch) for batch in batches] == [201, 200, 200, 200, 200]
    assert torch.equal(torch.cat(batches).flatten(), torch.arange(1001.0))


def test_recalibrated_statistics_are_the_means_over_all_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    norm = nn.BatchNorm2d(3, momentum=0.3).train()
    model = nn.Sequential(norm, nn.Dropout(0.5)).eval()
    batches = [torch.randn(8, 3, 4, 4, generator=generator) * (index + 1) for index in range(3)]
    recalibrate(model, batches)
    assert torch.allclose(norm.running_mean, torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0), atol=1e-6)
    assert torch.allclose(norm.running_var, torch.stack([b.var((0, 2, 3)) for b in batches]).mean(0), atol=1e-5)
    assert norm.momentum == 0.3
    assert not any(module.training for module in model.modules())


def test_all_calls_of_a_layer_have_equal_weight() -> None:
    """The result is bit-identical to torch's own cumulative average, and no hook stays."""
    generator = torch.Generator().manual_seed(0)
    norm = nn.BatchNorm2d(3)
    model, batches = nn.Sequential(norm, nn.ReLU(), norm), [torch.randn(8, 3, 4, 4, generator=generator) for _ in "123"]
    expected = copy.deepcopy(model).train()
    expected[0].momentum = None
    for batch in batches:
        expected(batch)
    recalibrate(model.eval(), batches)
    assert torch.equal(norm.running_mean, expected[0].running_mean)
    assert torch.equal(norm.running_var, expected[0].running_var)
    assert norm.momentum == 0.1
    model(batches[0])
    assert norm.momentum == 0.1, "the hook that sets the momentum is removed"


@pytest.mark.parametrize("name", list_networks())
def test_folding_does_not_change_the_output(name: str) -> None:
    model = trained_like(create(name))
    images = torch.randn(2, 3, *image_size(name), generator=torch.Generator().manual_seed(2))
    pairs = folding_pairs(model, images)
    assert len(pairs) == sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    folded = copy.deepcopy(model)
    fold(folded, pairs)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    with torch.inference_mode():
        assert torch.allclose(folded(images), model(images), rtol=1e-3, atol=1e-4)


def test_pairs_follow_the_forward_pass_and_not_the_order_of_registration() -> None:
    class Crossed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv_b, self.bn_a = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
            self.conv_a, self.bn_b = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.bn_b(self.conv_b(self.bn_a(self.conv_a(x)).relu())).mean((2, 3))

    model = trained_like(Crossed())
    assert folding_pairs(model, torch.randn(2, 3, 5, 5)) == [("conv_a", "bn_a"), ("conv_b", "bn_b")]


def test_a_convolution_whose_output_is_also_used_elsewhere_is_not_folded() -> None:
    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            return (self.bn(y) + y).mean((2, 3))

    assert folding_pairs(trained_like(Forked()), torch.randn(2, 3, 5, 5)) == []


def test_a_randomised_batchnorm_is_no_longer_the_identity() -> None:
    images = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    norm = nn.BatchNorm2d(3).eval()
    assert outputs_agree(norm(images), images)
    assert not outputs_agree(randomise_batchnorms(norm)(images), images)


def test_outputs_are_compared_relative_to_their_columns() -> None:
    expected = torch.tensor([[1.0, 1000.0], [2.0, -500.0]])
    assert outputs_agree(expected + torch.tensor([0.001, 0.5]), expected)
    assert not outputs_agree(expected + torch.tensor([0.5, 0.0]), expected)
    assert not outputs_agree(expected[:1], expected)
    assert not outputs_agree(expected.masked_fill(expected == 2, float("nan")), expected)


def test_maps_agree_by_channel() -> None:
    """A pixel whose values happen to be tiny in all images may differ by more than its own size."""
    expected = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) + 0.5
    expected[:, :, 1, 2] = 1e-6
    assert outputs_agree(expected + 1e-5, expected)
    expected[:, 1] /= 1000
    assert not outputs_agree(expected + 1e-5, expected)
