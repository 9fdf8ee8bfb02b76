"""AlexNet (Krizhevsky et al., NeurIPS 2012) for 32x32 images.

Five convolutions and three fully connected layers as in the paper; the strides are adapted to 32x32
(the first convolution keeps the resolution) and BatchNorm takes the place of local response normalisation.
"""

from __future__ import annotations

import torch
from torch import nn


def _block(channels: int, filters: int, kernel: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, filters, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(filters),
        nn.ReLU(inplace=True),
    ]


class AlexNet(nn.Module):
    """Filters 64, 192, 384, 256, 256; 256 x 4 x 4 features are flattened into Linear 1024, 1024, classes."""

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
        """Images [B, C, 32, 32] -> logits [B, K]."""
        return self.classifier(torch.flatten(self.features(images), 1))
