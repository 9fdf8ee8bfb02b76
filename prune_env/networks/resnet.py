"""ResNet-20 and ResNet-56 for 32x32 images (He et al., CVPR 2016, section 4.2, option A shortcuts)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .registry import register_network

IMAGENET_NORMALISATION = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation that the public CIFAR-10 weights of these networks were trained with."""


class ZeroPadShortcut(nn.Module):
    """Option A shortcut: takes every second pixel and adds channels of zeros. It has no parameters.

    The mapping is stored as a tensor, so that the shortcut stays correct when its two sides lose different channels.
    """

    source: torch.Tensor
    """Input channel that each output channel copies, -1 for zeros: int64 [C_out]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        before = (out_channels - in_channels) // 2
        source = torch.full((out_channels,), -1, dtype=torch.long)
        source[before : before + in_channels] = torch.arange(in_channels)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.register_buffer("source", source, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the shortcut [B, C_out, H/2, W/2] of features [B, C_in, H, W]."""
        x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 0))  # adds a channel 0 of zeros, so that source + 1 is an index
        return x.index_select(1, self.source + 1)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Identity() if stride == 1 else ZeroPadShortcut(in_channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return features [B, C, H/stride, W/stride] of features [B, C_in, H, W]."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet(nn.Module):
    """Three stages of 16, 32 and 64 channels with `blocks` blocks each, 6 * blocks + 2 weighted layers in total."""

    def __init__(self, blocks: int, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, 1)
        self.layer2 = self._stage(16, 32, blocks, 2)
        self.layer3 = self._stage(32, 64, blocks, 2)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
        first = BasicBlock(in_channels, channels, stride)
        return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits [B, K] of images [B, C, 32, 32]."""
        out = F.relu(self.bn1(self.conv1(images)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return self.linear(out.mean((2, 3)))


@register_network("resnet20", recipe={"epochs": 30, "lr": 0.2}, normalisation=IMAGENET_NORMALISATION)
def resnet20(num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """Return a ResNet-20."""
    return ResNet(3, num_classes, in_channels)


@register_network("resnet56", recipe={"epochs": 30, "lr": 0.2}, normalisation=IMAGENET_NORMALISATION)
def resnet56(num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """Return a ResNet-56."""
    return ResNet(9, num_classes, in_channels)
