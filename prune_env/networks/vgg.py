"""VGG-16 (Simonyan & Zisserman, ICLR 2015, configuration D) with BatchNorm for 32x32 images."""

from __future__ import annotations

import torch
from torch import nn

CONFIGURATION_D = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")
"""Filters of each convolution, 'M' for a 2x2 maximum pooling."""


class VGG16(nn.Module):
    """Thirteen convolutions under `features`, indexed as in torchvision's vgg16_bn, and one linear head."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for entry in CONFIGURATION_D:
            if isinstance(entry, str):
                layers.append(nn.MaxPool2d(2))
                continue
            # The bias is torchvision's: BatchNorm makes it redundant, but its files then load.
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
        """Images [B, C, 32, 32] -> logits [B, K]."""
        return self.classifier(torch.flatten(self.features(images), 1))
