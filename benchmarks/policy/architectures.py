"""Small convolutional networks of several families, to learn pruning on.

Letters: B images, C channels, H and W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Architecture:
    """A network of one family. Every stage after the first halves the resolution."""

    family: str
    """A key of `FAMILIES`."""
    widths: tuple[int, ...]
    """Channels of each stage."""
    blocks: tuple[int, ...]
    """Blocks of each stage."""

    @property
    def name(self) -> str:
        """Family, widths and blocks in one word, such as residual-16.32-2.2."""
        widths, blocks = (".".join(map(str, values)) for values in (self.widths, self.blocks))
        return f"{self.family}-{widths}-{blocks}"

    def build(self, classes: int, in_channels: int, seed: int = 0) -> nn.Module:
        """Return the network with fresh weights. The global random state does not change.

        Args:
            classes: Number of logits.
            in_channels: Channels of the images.
            seed: Seed of the weights.
        """
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return _Stages(FAMILIES[self.family], self, classes, in_channels)


class _Stages(nn.Module):
    """A stem, stages of blocks, global pooling and a linear head."""

    def __init__(self, block: Block, architecture: Architecture, classes: int, in_channels: int) -> None:
        super().__init__()
        channels = architecture.widths[0]
        self.stem = _conv(in_channels, channels, 3)
        blocks: list[nn.Module] = []
        for stage, (width, count) in enumerate(zip(architecture.widths, architecture.blocks, strict=True)):
            for number in range(count):
                made = block(channels, width, 2 if stage and not number else 1)
                blocks.append(made)
                channels = made.out_channels
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits [B, K] of images [B, C, H, W]."""
        return self.head(self.blocks(self.stem(images).relu()).mean((2, 3)))


class Plain(nn.Module):
    """One 3x3 convolution, as in VGG."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.out_channels = width
        self.body = _conv(in_channels, width, 3, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return features [B, C_out, H/stride, W/stride] of features [B, C, H, W]."""
        return self.body(x).relu()


class Residual(nn.Module):
    """Two 3x3 convolutions and a shortcut, as in ResNet-18."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.out_channels = width
        self.body = nn.Sequential(_conv(in_channels, width, 3, stride), nn.ReLU(), _conv(width, width, 3))
        self.shortcut = _shortcut(in_channels, width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return features [B, C_out, H/stride, W/stride] of features [B, C, H, W]."""
        return (self.body(x) + self.shortcut(x)).relu()


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut, as in ResNet-50."""

    groups = 1

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.out_channels = 2 * width
        self.body = nn.Sequential(
            _conv(in_channels, width, 1),
            nn.ReLU(),
            _conv(width, width, 3, stride, self.groups),
            nn.ReLU(),
            _conv(width, 2 * width, 1),
        )
        self.shortcut = _shortcut(in_channels, 2 * width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return features [B, C_out, H/stride, W/stride] of features [B, C, H, W]."""
        return (self.body(x) + self.shortcut(x)).relu()


class Grouped(Bottleneck):
    """A bottleneck whose 3x3 convolution has four groups, as in ResNeXt."""

    groups = 4


class Depthwise(nn.Module):
    """1x1, depthwise 3x3 and 1x1 convolutions, with a shortcut where shapes allow, as in MobileNetV2."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.out_channels, hidden = width, 3 * in_channels
        self.body = nn.Sequential(
            _conv(in_channels, hidden, 1),
            nn.ReLU(),
            _conv(hidden, hidden, 3, stride, hidden),
            nn.ReLU(),
            _conv(hidden, width, 1),
        )
        self.adds = stride == 1 and in_channels == width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return features [B, C_out, H/stride, W/stride] of features [B, C, H, W]."""
        return x + self.body(x) if self.adds else self.body(x)


class Dense(nn.Module):
    """A 3x3 convolution whose output is appended to its input, as in DenseNet; a stage begins with a transition."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.transition = nn.Identity()
        if stride == 2:
            self.transition = nn.Sequential(_conv(in_channels, in_channels // 2, 1), nn.ReLU(), nn.AvgPool2d(2))
            in_channels //= 2
        self.body = _conv(in_channels, width, 3)
        self.out_channels = in_channels + width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return features [B, C_out, H/stride, W/stride] of features [B, C, H, W]."""
        x = self.transition(x)
        return torch.cat([x, self.body(x).relu()], 1)


Block = Callable[[int, int, int], Plain | Residual | Bottleneck | Depthwise | Dense]
"""block(in_channels, width, stride)"""

FAMILIES: dict[str, Block] = {
    "plain": Plain,
    "residual": Residual,
    "bottleneck": Bottleneck,
    "grouped": Grouped,
    "depthwise": Depthwise,
    "dense": Dense,
}
"""The block of each family."""


def _conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Return a convolution without bias, followed by BatchNorm."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Return an identity, or a 1x1 convolution where the shapes differ."""
    if in_channels == out_channels and stride == 1:
        return nn.Identity()
    return _conv(in_channels, out_channels, 1, stride)
