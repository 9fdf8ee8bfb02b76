"""One network of every convolutional family of torchvision: its groups are found and proven."""

from __future__ import annotations

import pytest
import torch

from benchmarks.make.zoo import make
from prune_env.pruning import Cost, build, inspect
from prune_env.pruning.proof import NOT_THE_SAME

GROUPS = {
    "resnet18": 12,
    "shufflenet_v2_x0_5": 20,
    "squeezenet1_1": 25,
    "alexnet": 7,
    "vgg11_bn": 10,
    "resnext50_32x4d": 21,
    "densenet121": 120,
    "mobilenet_v2": 25,
    "mobilenet_v3_small": 27,
    "mnasnet0_5": 25,
    "efficientnet_b0": 40,
    "regnet_y_400mf": 37,
    "convnext_tiny": 18,
}
QUICK = ("resnet18",)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in GROUPS]
)
def test_every_family_is_found_and_proven(name: str) -> None:
    model, images = make(name)
    found = inspect(model, images)
    assert len(found.groups) == GROUPS[name]
    assert found.differences is not None
    assert max(found.differences.values()) < 1e-4
    failed = [entry for entry in found.protected if NOT_THE_SAME in entry.reason]
    assert all(layer.startswith("aux") for entry in failed for layer in entry.layers), "tracing alone is correct"
    assert 0.5 < found.removable < 1


def test_auxiliary_heads_are_cut_with_the_rest() -> None:
    """They run in training only, and a pruned network must still train."""
    model, images = make("googlenet")
    found = inspect(model, images, prove=False)
    assert "aux1.conv.conv" in {layer for group in found.groups for layer in group.layers}
    ranking = {group.name: torch.arange(group.filters) for group in found.groups}
    plan = tuple(-(-group.filters // 2) for group in found.groups)
    smaller = build(model, found.groups, ranking, plan).train()
    outputs = smaller(images)
    assert [tuple(output.shape) for output in outputs] == [(2, 1000)] * 3
    cost = Cost(model, found.groups, images)
    assert cost.params(plan) == sum(parameter.numel() for parameter in smaller.parameters())
