"""Images and small networks that tests of copies and of suitability change."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network() -> nn.Sequential:
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


class Direct(nn.Module):
    """A network whose `norm` subclasses replace; `table` belongs to the class, so copies share it."""

    table: ClassVar[dict[str, Any]]

    def __init__(self, channels: int = 3, classes: int = 4) -> None:
        super().__init__()
        self.first, self.bn, self.last = nn.Conv2d(channels, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, classes, 1)

    def norm(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.first(x)).relu()).mean((2, 3))
