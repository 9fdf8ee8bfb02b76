"""A small VGG-like network for 8x8 images that trains in seconds."""

from __future__ import annotations

import torch
from torch import nn

from .registry import register_network


@register_network("small_cnn", image_size=(8, 8), recipe={"epochs": 30, "batch_size": 64, "lr": 0.1})
class SmallCNN(nn.Module):
    """Five convolutions of 32, 32, 64, 64 and 128 filters with BatchNorm, global pooling and a linear head."""

    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for filters in (32, 32, 0, 64, 64, 0, 128):
            if filters == 0:
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [
                nn.Conv2d(channels, filters, 3, padding=1, bias=False),
                nn.BatchNorm2d(filters),
                nn.ReLU(inplace=True),
            ]
            channels = filters
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits [B, K] of images [B, C, 8, 8]."""
        return self.classifier(torch.flatten(self.pool(self.features(images)), 1))
