"""The registry of networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from prune_env.networks import create, list_networks
from prune_env.networks.registry import image_size
from prune_env.networks.resnet import ZeroPadShortcut


@pytest.mark.parametrize("name", list_networks())
def test_every_network_runs_and_repeats_under_one_seed(name: str) -> None:
    one, two, other = create(name, 7, 2, seed=1), create(name, 7, 2, seed=1), create(name, 7, 2, seed=2)
    images = torch.zeros(2, 2, *image_size(name))
    assert one.eval()(images).shape == (2, 7)
    for first, second in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(first, second)
    assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.usefixtures("untouched_rngs")
def test_creating_leaves_the_global_random_state() -> None:
    create("small_cnn", 10, 1, seed=3)


@pytest.mark.parametrize(
    ("name", "convolutions", "head"),
    [("vgg16", 313_196_544, 5_120), ("resnet20", 40_550_400, 640)],
)
def test_macs_by_hand_count(name: str, convolutions: int, head: int) -> None:
    """VGG-16: 3x3 taps of 3-64-64 at 32x32, 64-128-128 at 16x16, ... ; ResNet-20 is 40,551,040 in all."""
    model = create(name).eval()
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 32, 32))
    by_kind: dict[str, int] = {}
    for operation, flops in counter.get_flop_counts()["Global"].items():
        kind = "convolution" if "convolution" in str(operation) else "linear"
        by_kind[kind] = by_kind.get(kind, 0) + flops // 2
    assert by_kind == {"convolution": convolutions, "linear": head}


def test_vgg_has_torchvisions_names() -> None:
    from torchvision.models import vgg16_bn

    ours, theirs = create("vgg16"), vgg16_bn(weights=None)
    shapes = {name: tensor.shape for name, tensor in theirs.features.state_dict(prefix="features.").items()}
    assert {name: t.shape for name, t in ours.state_dict().items() if name.startswith("features.")} == shapes
    assert isinstance(ours.classifier, nn.Linear)
    assert ours.classifier.in_features == 512


def test_option_a_shortcut_equals_slice_and_pad() -> None:
    x = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8))
    assert torch.equal(ZeroPadShortcut(16, 32)(x), expected)
