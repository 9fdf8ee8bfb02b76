"""VGG-16 (Simonyan & Zisserman, ICLR 2015, configuration D) with BatchNorm for 32x32 images."""

from __future__ import annotations

import torch
from torch import nn

from .registry import register_network

CONFIGURATION_D = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")
"""Filters of each convolution; 'M' stands for 2x2 max pooling."""


@register_network("vgg16", recipe={"batch_size": 512, "muon_lr": 0.1, "cutout": 8, "ema_decay": 0.992})
class VGG16(nn.Module):
    """Thirteen convolutions in `features`, with the parameter names of torchvision's vgg16_bn, and a linear head."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for entry in CONFIGURATION_D:
            if isinstance(entry, str):
                layers.append(nn.MaxPool2d(2))
                continue
            # BatchNorm makes the bias redundant; it is here so that weights of torchvision can be loaded.
            layers += [
                nn.Conv2d(channels, entry, 3, padding=1),
                nn.BatchNorm2d(entry),
                nn.ReLU(inplace=True),
            ]
            channels = entry
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(512, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits [B, K] of images [B, C, 32, 32]."""
        return self.classifier(torch.flatten(self.features(images), 1))
