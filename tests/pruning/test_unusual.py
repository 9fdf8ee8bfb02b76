"""Networks of unusual structures: what is cut computes what masking does, and what is not cut is named."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prune_env.pruning import inspect, prove


def conv(channels: int, filters: int, **settings: Any) -> nn.Conv2d:
    return nn.Conv2d(channels, filters, 3, padding=settings.get("dilation", 1), **settings)


class Net(nn.Module):
    """A stem with BatchNorm, something unusual, a convolution of `width` channels, and a linear head."""

    width = 8

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU())
        self.make()
        self.last, self.head = conv(self.width, 6), nn.Linear(6, 5)

    def make(self) -> None: ...

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.last(self.middle(self.stem(x)))).mean((2, 3)))


class Siamese(Net):
    """One convolution that reads two branches, with its own normalisation for each."""

    def make(self) -> None:
        self.left, self.right, self.both = conv(8, 10), conv(8, 10), conv(10, 4)
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4)])

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        branches = zip(self.norms, (self.left, self.right), strict=True)
        return torch.cat([norm(self.both(branch(x))) for norm, branch in branches], 1)


class Loop(Net):
    """A recurrent convolution, unrolled."""

    def make(self) -> None:
        self.read, self.again = conv(8, 8), conv(8, 8)

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        state = torch.zeros_like(x)
        for _ in range(3):
            state = torch.tanh(self.read(x) + self.again(state))
        return state


class Gates(Net):
    """A convolutional LSTM: four parts of one convolution gate each other."""

    def make(self) -> None:
        self.gates = conv(16, 32)

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        hidden = cell = torch.zeros_like(x)
        for _ in range(2):
            i, f, o, g = self.gates(torch.cat((x, hidden), 1)).chunk(4, 1)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            hidden = o.sigmoid() * cell.tanh()
        return hidden


class Ghost(Net):
    """Cheap depthwise copies of features, concatenated with them."""

    width = 12

    def make(self) -> None:
        self.some, self.cheap = conv(8, 6), conv(6, 6, groups=6)

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        x = self.some(x)
        return torch.cat((x, self.cheap(x)), 1)[:, :12]


class Pyramid(Net):
    """Dilated branches and a globally pooled one (ASPP)."""

    width = 15

    def make(self) -> None:
        self.branches = nn.ModuleList([conv(8, 5, dilation=dilation) for dilation in (1, 2)])
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 5, 1))

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        pooled = F.interpolate(self.pooled(x), x.shape[2:], mode="bilinear")
        return torch.cat([*(branch(x) for branch in self.branches), pooled], 1)


class Skip(Net):
    """Down, up by a transposed convolution, and a skip connection (U-Net)."""

    width = 16

    def make(self) -> None:
        self.down, self.up = conv(8, 12, stride=2), nn.ConvTranspose2d(12, 8, 2, stride=2)

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat((self.up(F.relu(self.down(x))), x), 1)


class Parallel(Net):
    """Parallel convolutions with a normalised identity (RepVGG), mixed by learned weights."""

    def make(self) -> None:
        self.wide, self.narrow, self.norm = conv(8, 8), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.weights = nn.Parameter(torch.tensor([0.3, 0.7]))

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        one, other = self.weights.softmax(0)
        return torch.lerp(one * self.wide(x), other * self.narrow(x), 0.4) + self.norm(x)


class Focus(Net):
    """Positions become channels by slices with strides."""

    width = 32

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[..., row::2, column::2] for row in (0, 1) for column in (0, 1)], 1)


class StandardisedConv(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5), self.bias, padding=1)


class Standardised(Net):
    def make(self) -> None:
        self.conv = StandardisedConv(8, 8, 3)

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


class Mixture(Net):
    """Kernels that depend on the image, in a convolution over all images at once (dynamic convolution)."""

    def make(self) -> None:
        self.kernels, self.route = nn.Parameter(torch.randn(2, 8, 8, 3, 3)), nn.Linear(8, 2)

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        shares = self.route(x.mean((2, 3))).softmax(-1)
        kernels = torch.einsum("nk,koihw->noihw", shares, self.kernels).flatten(0, 1)
        return F.conv2d(x.flatten(0, 1)[None], kernels, padding=1, groups=len(x)).view(x.shape)


class Buffers(Net):
    """Channels that are scaled, permuted and partly overwritten by numbers outside of layers."""

    def make(self) -> None:
        self.register_buffer("scale", torch.rand(8, 1, 1))
        self.register_buffer("order", torch.arange(8).flip(0))

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        x = (x * self.scale).index_select(1, self.order)
        x[:, 2] = x[:, 2] * 3
        return x


class Spectrum(Net):
    """Complex numbers between convolutions."""

    def make(self) -> None:
        self.conv = conv(8, 8)

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        left, right = self.conv(torch.fft.irfft2(torch.fft.rfft2(x), s=x.shape[-2:])).chunk(2, 1)
        return torch.cat((torch.complex(left, right).abs(), left), 1)


class Sequence(Net):
    """An LSTM over positions, whose copies must make their weak references to their parameters again."""

    def make(self) -> None:
        self.lstm = nn.LSTM(8, 8, batch_first=True)

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return self.lstm(x.flatten(2).mT)[0].mT.unflatten(2, x.shape[2:])


@pytest.mark.parametrize(
    ("kind", "cut", "named"),
    [
        (Siamese, {"stem.0", "left", "right", "both", "last"}, {}),
        (Loop, {"stem.0", "read", "again", "last"}, {}),
        (Gates, {"stem.0", "gates", "last"}, {}),
        (Ghost, {"stem.0", "some", "cheap", "last"}, {}),
        (Pyramid, {"stem.0", "branches.0", "branches.1", "pooled.1", "last"}, {}),
        (Skip, {"stem.0", "down", "up", "last"}, {}),
        (Parallel, {"stem.0", "wide", "narrow", "last"}, {}),
        (Focus, {"stem.0", "last"}, {}),
        (Standardised, {"last"}, {"stem.0": "conv", "conv": "conv"}),
        (Mixture, {"last"}, {"stem.0": "the network"}),
        (Buffers, {"last"}, {"stem.0": "scale"}),
        (Spectrum, {"last"}, {"stem.0": "fft", "conv": "complex"}),
        (Sequence, {"last"}, {"stem.0": "rnn"}),
    ],
)
def test_cut_or_named(kind: type[Net], cut: set[str], named: dict[str, str]) -> None:
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.manual_seed(0)
        model, images = kind(), torch.randn(2, 3, 8, 8)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.bias)
        inspection = inspect(model, images)
    assert {layer for group in inspection.groups for layer in group.layers} == cut
    reasons = {layer: entry.reason for entry in inspection.protected for layer in entry.layers}
    assert reasons.keys() == named.keys()
    assert all(name in reasons[layer] for layer, name in named.items())
    assert max(prove(model, inspection.groups, images, plans_per_group=1, seed=1).values()) < 1e-4
