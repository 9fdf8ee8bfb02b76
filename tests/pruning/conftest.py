"""Networks for the pruning tests: every registered one, and toys with one kind of connection each."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prune_env.networks import create, list_networks
from prune_env.networks.registry import image_size

Make = Callable[[str], tuple[nn.Module, torch.Tensor]]


def block(channels: int, filters: int, kernel: int = 3, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(channels, filters, kernel, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(filters), nn.ReLU(inplace=True))


class Toy(nn.Module):
    """Blocks by name, global pooling and a linear head on `width` channels."""

    def __init__(self, width: int, **blocks: nn.Module) -> None:
        super().__init__()
        for name, module in blocks.items():
            self.add_module(name, module)
        self.head = nn.Linear(width, 5)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x).mean((2, 3)))


class Flatten(nn.Module):
    """A convolution of 8 filters, whose 4x4 maps are flattened into a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool, self.linear = nn.Conv2d(3, 8, 3, padding=1), nn.AvgPool2d(2), nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.pool(F.relu(self.conv(x))).flatten(1))


class Concat(Toy):
    """Branches of 8 and 12 channels, concatenated and read by a 1x1 convolution."""

    def __init__(self) -> None:
        super().__init__(6, left=block(3, 8), right=block(3, 12), mix=block(20, 6, 1))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.mix(torch.cat((self.left(x), self.right(x)), 1))


class Dense(Toy):
    """Concatenations with the input and with earlier features, and a BatchNorm over all parts."""

    def __init__(self) -> None:
        super().__init__(7, one=block(3, 6), two=block(9, 5), norm=nn.BatchNorm2d(14), last=block(14, 7))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat((x, self.one(x)), 1)
        x = torch.cat((self.two(x), x), 1)
        return self.last(F.relu(self.norm(x)))


class Depthwise(Toy):
    """Inverted residual: expansion, depthwise convolution with bias, projection, addition."""

    def __init__(self) -> None:
        depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        super().__init__(6, stem=block(3, 6), expand=block(6, 12, 1), depthwise=depthwise, project=nn.Conv2d(12, 6, 1))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return x + self.project(F.relu6(self.depthwise(self.expand(x))))


class Gated(Toy):
    """Squeeze and excitation with linear layers, and a PReLU with a slope for each channel."""

    def __init__(self) -> None:
        super().__init__(6, stem=block(3, 8), squeeze=nn.Linear(8, 4), excite=nn.Linear(4, 8), last=block(8, 6))
        self.activation = nn.PReLU(8)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        x = self.activation(self.stem(x) - 0.5)
        gate = self.excite(F.relu(self.squeeze(x.mean((2, 3))))).sigmoid()
        return self.last(x * gate[:, :, None, None])


class Reused(Toy):
    """A convolution that is called twice, so its input and output have the same channels."""

    def __init__(self) -> None:
        super().__init__(8, stem=block(3, 8), twice=nn.Conv2d(8, 8, 3, padding=1))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.twice(F.relu(self.twice(self.stem(x)))))


TOYS: dict[str, Callable[[], nn.Module]] = {
    "flatten": Flatten,
    "concat": Concat,
    "dense": Dense,
    "depthwise": Depthwise,
    "gated": Gated,
    "reused": Reused,
}


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw scales, shifts and statistics of BatchNorm, so that a filter of zeros is not zero behind it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(generator=generator)
                module.running_mean.normal_(generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model


@pytest.fixture(scope="session")
def make() -> Make:
    """Returns a new network in training mode, with random BatchNorm, and two images for it, by a name."""

    def make(name: str) -> tuple[nn.Module, torch.Tensor]:
        generator = torch.Generator().manual_seed(1)
        if name in list_networks():
            channels = 1 if name == "small_cnn" else 3
            images = torch.randn(2, channels, *image_size(name), generator=generator)
            return randomise(create(name, 10, channels)), images
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = TOYS[name]()
        return randomise(model), torch.randn(2, 3, 8, 8, generator=generator)

    return make
