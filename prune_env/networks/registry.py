"""Networks by name. Every test over 'all networks' runs over this table."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from .alexnet import AlexNet
from .resnet import ResNet
from .small_cnn import SmallCNN
from .vgg import VGG16


def _resnet20(num_classes: int, in_channels: int) -> nn.Module:
    return ResNet(3, num_classes, in_channels)


def _resnet56(num_classes: int, in_channels: int) -> nn.Module:
    return ResNet(9, num_classes, in_channels)


NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {
    "small_cnn": SmallCNN,
    "alexnet": AlexNet,
    "vgg16": VGG16,
    "resnet20": _resnet20,
    "resnet56": _resnet56,
}
"""Name -> constructor taking (num_classes, in_channels)."""

IMAGE_SIZES = {"small_cnn": (8, 8)}
"""Height and width a network is made for, where that is not 32x32."""


def image_size(name: str) -> tuple[int, int]:
    """Height and width in pixels of the images that a registered network is made for."""
    return IMAGE_SIZES.get(name, (32, 32))


def create(name: str, num_classes: int = 10, in_channels: int = 3, seed: int = 0) -> nn.Module:
    """A registered network with fresh weights drawn from `seed`; the global random state is left alone.

    Raises ValueError for a name that is not registered.
    """
    if name not in NETWORKS:
        raise ValueError(f"network {name!r} is not registered; choose one of {', '.join(NETWORKS)}")
    if num_classes < 2 or in_channels < 1:
        raise ValueError(
            f"a classifier needs num_classes >= 2 and in_channels >= 1, got {num_classes} and {in_channels}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NETWORKS[name](num_classes, in_channels)
