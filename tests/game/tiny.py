"""A network so small that its costs and statistics can be computed by hand.

On images of 8x8 pixels, with k of 4 filters in the first group and j of 2 in the second:

| layer | group | MACs | parameters |
|---|---|---|---|
| a, 3x3 | 0 | 64 * 9 * k | 9 * k |
| c, 1x1, added to a | 0 | 64 * k * k | k * k |
| b, 1x1, stride 2 | 1 | 16 * k * j | k * j |
| head, 10 classes | - | 10 * j | 10 * j + 10 |
"""

from __future__ import annotations

import torch
from torch import nn

from prune_env import PruningProblem
from prune_env.data import DataSplits
from prune_env.pruning.problem import ProblemConfig


class Tiny(nn.Module):
    """A residual stream of 4 channels, which both a and c write to, and a layer that reads it.

    The filters of a and of c have L1 norms in the ratio 4 : 3 : 2 : 1, those of b in the ratio 3 : 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.c = nn.Conv2d(4, 4, 1, bias=False)
        self.b = nn.Conv2d(4, 2, 1, stride=2, bias=False)
        self.head = nn.Linear(2, 10)
        with torch.no_grad():
            for layer, norms in ((self.a, (4, 3, 2, 1)), (self.c, (4, 3, 2, 1)), (self.b, (3, 1))):
                layer.weight.copy_(torch.tensor(norms).view(-1, 1, 1, 1).expand_as(layer.weight))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        x = self.b(torch.relu(x + self.c(x)))
        return self.head(x.mean((2, 3)))


def tiny_problem(digits: DataSplits) -> PruningProblem:
    """Return the problem of the tiny network on digits."""
    return PruningProblem.create(Tiny().eval(), digits, ProblemConfig(calibration_images=20))
