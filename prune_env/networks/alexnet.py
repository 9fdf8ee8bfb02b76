"""AlexNet (Krizhevsky et al., NeurIPS 2012) for 32x32 images.

As in the paper, the network has five convolutions and three fully connected layers. The first convolution keeps the
resolution because the images are small, and BatchNorm replaces local response normalisation.
"""

from __future__ import annotations

import torch
from torch import nn

from .registry import register_network


def _block(channels: int, filters: int, kernel: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, filters, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(filters),
        nn.ReLU(inplace=True),
    ]


@register_network("alexnet", recipe={"lr": 0.05, "cutout": 8})
class AlexNet(nn.Module):
    """Convolutions of 64, 192, 384, 256 and 256 filters; linear layers of 1024, 1024 and `num_classes` units."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3, hidden: int = 1024) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_block(in_channels, 64, 5),
            nn.MaxPool2d(2),  # 16
            *_block(64, 192, 5),
            nn.MaxPool2d(2),  # 8
            *_block(192, 384, 3),
            *_block(384, 256, 3),
            *_block(256, 256, 3),
            nn.MaxPool2d(2),  # 4
        )
        self.classifier = nn.Sequential(
            nn.Dropout(0.5),
            nn.Linear(256 * 4 * 4, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, num_classes),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits [B, K] of images [B, C, 32, 32]."""
        return self.classifier(torch.flatten(self.features(images), 1))
