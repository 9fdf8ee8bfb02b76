"""A small module for every kind of structure in real networks, and random networks that consist of them.

Every kind is constructed with (channels, random number generator) and maps [B, C, H, W] to [B, C', H', W']; its
attribute `width` is C'.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torchvision.ops import FrozenBatchNorm2d

from prune_env.pruning.copies import HOOKS


class Stage(nn.Module):
    """Base class that stores `width`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width


def block(channels: int, filters: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(channels, filters, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(filters), nn.ReLU(inplace=True))


class Plain(Stage):
    def __init__(self, c: int, rng: random.Random) -> None:
        super().__init__(rng.choice((4, 6, 8, 12)))
        self.block = block(c, self.width, rng.choice((1, 3)), rng.choice((1, 2)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(x)


class Residual(Stage):
    """An addition, in place or not, with or without a projection."""

    def __init__(self, c: int, rng: random.Random) -> None:
        super().__init__(rng.choice((c, c, 8)))
        self.inner = nn.Sequential(block(c, 6), nn.Conv2d(6, self.width, 3, padding=1), nn.BatchNorm2d(self.width))
        self.shortcut = nn.Identity() if self.width == c else nn.Conv2d(c, self.width, 1)
        self.in_place = rng.random() < 0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.inner(x)
        y = y.add_(self.shortcut(x)) if self.in_place else self.shortcut(x) + y
        return F.relu(y)


class ZeroPadded(Stage):
    """Option A shortcut with a fixed number of zeros."""

    def __init__(self, c: int, rng: random.Random) -> None:
        super().__init__(c + 4)
        self.inner = nn.Sequential(block(c, self.width, 3, 2), nn.Conv2d(self.width, self.width, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.inner(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))


class Branches(Stage):
    """Concatenation of two branches, or of a branch and its input (DenseNet)."""

    def __init__(self, c: int, rng: random.Random) -> None:
        dense = rng.random() < 0.5
        super().__init__(5 + (c if dense else 3))
        self.one, self.other = block(c, 5), nn.Identity() if dense else block(c, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat((self.one(x), self.other(x)), dim=1)


class Depthwise(Stage):
    """Depthwise convolution with a multiplier, then a pointwise one."""

    def __init__(self, c: int, rng: random.Random) -> None:
        super().__init__(rng.choice((4, 8)))
        times = rng.choice((1, 2))
        self.depthwise, self.pointwise = (
            nn.Conv2d(c, c * times, 3, padding=1, groups=c),
            nn.Conv2d(c * times, self.width, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pointwise(F.relu6(self.depthwise(x)))


class Grouped(Stage):
    """A grouped convolution between two pointwise ones (ResNeXt)."""

    def __init__(self, c: int, rng: random.Random) -> None:
        super().__init__(6)
        self.body = nn.Sequential(block(c, 8, 1), block(8, 12, 3, groups=4), nn.Conv2d(12, 6, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


class Gate(Stage):
    """Squeeze and excitation, with convolutions or with linear layers."""

    def __init__(self, c: int, rng: random.Random) -> None:
        super().__init__(c)
        self.linear = rng.random() < 0.5
        make = nn.Linear if self.linear else lambda i, o: nn.Conv2d(i, o, 1)
        self.squeeze, self.excite = make(c, 4), make(4, c)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.mean((2, 3)) if self.linear else F.adaptive_avg_pool2d(x, 1)
        y = self.excite(F.silu(self.squeeze(y))).sigmoid()
        return x * (y[:, :, None, None] if self.linear else y)


class SpatialGate(Stage):
    """One map that multiplies all channels."""

    def __init__(self, c: int, rng: random.Random) -> None:
        super().__init__(c)
        self.map = nn.Conv2d(c, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.map(x).sigmoid()


class ChannelMean(Stage):
    def __init__(self, c: int, rng: random.Random) -> None:
        super().__init__(c)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(1, keepdim=True)


class Shuffled(Stage):
    """Two halves, one of them convolved, then concatenated and shuffled by reshapes (ShuffleNet)."""

    def __init__(self, c: int, rng: random.Random) -> None:
        super().__init__(8)
        self.stem, self.branch = nn.Conv2d(c, 8, 1), nn.Sequential(block(4, 6), nn.Conv2d(6, 4, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = self.stem(x).chunk(2, dim=1)
        x = torch.cat((left, self.branch(right)), dim=1)
        b, c, h, w = x.shape
        return x.view(b, 2, c // 2, h, w).transpose(1, 2).contiguous().view(b, c, h, w)


class HardReshape(Stage):
    """A reshape with fixed numbers of channels."""

    def __init__(self, c: int, rng: random.Random) -> None:
        super().__init__(8)
        self.conv = nn.Conv2d(c, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).reshape(len(x), 4, 2, *x.shape[2:]).flatten(1, 2)


class Sliced(Stage):
    def __init__(self, c: int, rng: random.Random) -> None:
        super().__init__(c - 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, 1:]


class Normalised(Stage):
    """Normalisations other than BatchNorm."""

    def __init__(self, c: int, rng: random.Random) -> None:
        super().__init__(8)
        kinds: list[Callable[[], nn.Module]] = [
            lambda: nn.GroupNorm(4, 8),
            lambda: nn.InstanceNorm2d(8, affine=True),
            lambda: nn.InstanceNorm2d(8),
            lambda: nn.LocalResponseNorm(3),
        ]
        self.conv, self.norm = nn.Conv2d(c, 8, 3, padding=1), rng.choice(kinds)()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.gelu(self.norm(self.conv(x)))


class ChannelsLast(Stage):
    """LayerNorm over channels and linear layers at every position (ConvNeXt)."""

    def __init__(self, c: int, rng: random.Random) -> None:
        super().__init__(c)
        self.norm = nn.LayerNorm(c) if rng.random() < 0.5 else nn.Identity()
        self.up, self.down = nn.Linear(c, 10), nn.Linear(10, c)
        self.scale = nn.Parameter(torch.full((c, 1, 1), 0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.down(F.gelu(self.up(self.norm(x.permute(0, 2, 3, 1))))).permute(0, 3, 1, 2)
        return x + self.scale * y


class Slopes(Stage):
    """PReLU with a slope for each channel, or one slope."""

    def __init__(self, c: int, rng: random.Random) -> None:
        super().__init__(c)
        self.activation = nn.PReLU(rng.choice((1, c)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(x - 0.5)


class Upsampled(Stage):
    """Transposed convolution, pixel shuffle or interpolation."""

    def __init__(self, c: int, rng: random.Random) -> None:
        super().__init__(4)
        kinds: list[Callable[[], nn.Module]] = [
            lambda: nn.ConvTranspose2d(c, 4, 2, stride=2),
            lambda: nn.Sequential(nn.Conv2d(c, 16, 1), nn.PixelShuffle(2)),
            lambda: nn.Sequential(nn.Conv2d(c, 4, 1), nn.Upsample(scale_factor=2, mode="bilinear")),
        ]
        self.up = rng.choice(kinds)()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.max_pool2d(F.relu(self.up(x)), 2)


class Twice(Stage):
    """A module that is called twice."""

    def __init__(self, c: int, rng: random.Random) -> None:
        super().__init__(c)
        self.conv = nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.conv(F.relu(self.conv(x))))


class Parametrised(Stage):
    def __init__(self, c: int, rng: random.Random) -> None:
        super().__init__(6)
        self.conv = parametrizations.weight_norm(nn.Conv2d(c, 6, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.conv(x))


class Frozen(Stage):
    def __init__(self, c: int, rng: random.Random) -> None:
        super().__init__(6)
        self.block = block(c, 6).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(x)


class Pooled(Stage):
    """Pooling and padding of positions."""

    def __init__(self, c: int, rng: random.Random) -> None:
        super().__init__(c)
        self.mode = rng.choice(("constant", "reflect", "replicate"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.pad(x, (0, 1, 1, 0), mode=self.mode)
        return F.max_pool2d(x, 2, 1) + F.avg_pool2d(x, 2, 1)


class ChannelShuffle(Stage):
    """`nn.ChannelShuffle` between two convolutions."""

    def __init__(self, c: int, rng: random.Random) -> None:
        super().__init__(6)
        self.body = nn.Sequential(nn.Conv2d(c, 8, 1), nn.ChannelShuffle(2), nn.Conv2d(8, 6, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


class ZeroStart(Stage):
    """A residual branch that is zero because of its last normalisation."""

    def __init__(self, c: int, rng: random.Random) -> None:
        super().__init__(c)
        self.inner, self.last, self.norm = block(c, 6), nn.Conv2d(6, c, 3, padding=1), nn.GroupNorm(1, c)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.norm(self.last(self.inner(x)))


class Functional(Stage):
    """A functional convolution with another module's parameters, and a call with a keyword argument."""

    def __init__(self, c: int, rng: random.Random) -> None:
        super().__init__(6)
        self.conv, self.read = nn.Conv2d(c, 5, 1), nn.Conv2d(5, 6, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.read(input=F.conv2d(x, self.conv.weight, self.conv.bias))


class Volume(Stage):
    """Convolutions of one and three dimensions."""

    def __init__(self, c: int, rng: random.Random) -> None:
        super().__init__(4)
        self.volume, self.line = nn.Conv3d(c, 6, (1, 3, 3), padding=(0, 1, 1)), nn.Conv1d(6, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.volume(x.unsqueeze(2))).squeeze(2)
        return self.line(y.flatten(2)).unflatten(2, y.shape[2:])


class Unshuffled(Stage):
    """Positions that become channels, and back."""

    def __init__(self, c: int, rng: random.Random) -> None:
        super().__init__(6)
        self.conv, self.back = nn.Conv2d(4 * c, 6, 1), rng.random() < 0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.pixel_unshuffle(F.interpolate(x, scale_factor=2), 2)
        if self.back:
            b, c, h, w = x.shape
            x = F.fold(x.flatten(2), (h, w), 1) + x.view(b, c // 4, 4, h, w).flip(2).flatten(1, 2)
        return self.conv(x)


class Gated(Stage):
    """A gated linear unit."""

    def __init__(self, c: int, rng: random.Random) -> None:
        super().__init__(5)
        self.conv = nn.Conv2d(c, 10, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.glu(self.conv(x), 1)


class Circular(Stage):
    """Circular padding, in a convolution and by itself."""

    def __init__(self, c: int, rng: random.Random) -> None:
        super().__init__(6)
        self.conv = nn.Conv2d(c, 6, 3, padding=1, padding_mode="circular")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(F.pad(self.conv(x), (1, 1, 1, 1), mode="circular"), 3, 1)


class Sampled(Stage):
    """A grid that a small network computes (spatial transformer), and a fixed one."""

    def __init__(self, c: int, rng: random.Random) -> None:
        super().__init__(c)
        self.place = nn.Linear(c, 6) if rng.random() < 0.5 else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        matrix = torch.eye(2, 3, dtype=x.dtype, device=x.device).expand(len(x), 2, 3)
        if self.place is not None:
            matrix = matrix + 0.1 * self.place(x.mean((2, 3))).view(-1, 2, 3)
        grid = F.affine_grid(matrix, [len(x), 1, *x.shape[2:]], align_corners=False)
        return F.grid_sample(x, grid, align_corners=False)


class Unfolded(Stage):
    """Windows of positions, as further channels, as a dimension of their own, or folded again."""

    def __init__(self, c: int, rng: random.Random) -> None:
        self.kind = rng.choice(("channels", "dimension", "folded", "tensor"))
        super().__init__(6)
        self.conv = nn.Conv2d(9 * c if self.kind == "channels" else c, 6, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, c, h, w = x.shape
        if self.kind == "tensor":
            return self.conv(F.pad(x, (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1).amax((4, 5)))
        windows = F.unfold(x, 3, padding=1)
        if self.kind == "folded":
            return self.conv(F.fold(windows, (h, w), 3, padding=1))
        return self.conv(windows.view(b, -1, h, w) if self.kind == "channels" else windows.view(b, c, 9, h, w).amax(2))


class C2f(Stage):
    """A split by a number that the module stores (YOLOv8)."""

    def __init__(self, c: int, rng: random.Random) -> None:
        super().__init__(6)
        self.c = 3
        self.cv1, self.m, self.cv2 = nn.Conv2d(c, 6, 1), block(3, 3), nn.Conv2d(9, 6, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = self.cv1(x).split((self.c, self.c), 1)
        return self.cv2(torch.cat((left, right, self.m(right)), 1))


class CrossStage(Stage):
    """A split into halves of a number that the module stores (timm's CSPNets)."""

    def __init__(self, c: int, rng: random.Random) -> None:
        super().__init__(6)
        self.expand_chs = 8
        self.conv_exp, self.block, self.last = nn.Conv2d(c, 8, 1), block(4, 4), nn.Conv2d(8, 6, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = self.conv_exp(x).split(self.expand_chs // 2, 1)
        return self.last(torch.cat((left, self.block(right)), 1))


class FrozenNorm(Stage):
    """BatchNorm whose tensors are buffers."""

    def __init__(self, c: int, rng: random.Random) -> None:
        super().__init__(6)
        self.conv, self.norm = nn.Conv2d(c, 6, 3, padding=1), FrozenBatchNorm2d(6)
        for tensor in self.norm.buffers():
            nn.init.uniform_(tensor, 0.5, 1.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.norm(self.conv(x)))


class Attention(nn.Module):
    """Attention whose heads can go, with the attributes of timm's."""

    def __init__(self, dim: int, fused: bool) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.fused = 3, 4, fused
        self.attn_dim = self.num_heads * self.head_dim
        self.qkv, self.proj = nn.Linear(dim, 3 * self.attn_dim), nn.Linear(self.attn_dim, dim)
        self.q_norm = nn.LayerNorm(self.head_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        q = self.q_norm(q)
        x = F.scaled_dot_product_attention(q, k, v) if self.fused else (q * 0.5 @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.proj(x.transpose(1, 2).reshape(b, n, self.attn_dim))


class Heads(Stage):
    """Attention over positions, fused or not."""

    def __init__(self, c: int, rng: random.Random) -> None:
        super().__init__(c)
        self.attention = Attention(c, rng.random() < 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.attention(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)


class AcrossChannels(Stage):
    """A gate from neighbouring channels (ECA), or from statistics over all channels (CBAM)."""

    def __init__(self, c: int, rng: random.Random) -> None:
        super().__init__(c)
        self.neighbours = rng.random() < 0.5
        self.gate = nn.Conv1d(1, 1, 3, padding=1) if self.neighbours else nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.neighbours:
            return x * self.gate(x.mean((2, 3)).unsqueeze(1)).transpose(1, 2).unsqueeze(3).sigmoid()
        return x * self.gate(torch.cat((x.mean(1, keepdim=True), x.amax(1, keepdim=True)), 1)).sigmoid()


KINDS: dict[str, Callable[[int, random.Random], Stage]] = {kind.__name__: kind for kind in Stage.__subclasses__()}


HEADS = ("mean", "flatten", "convolution", "hidden", "two outputs")


class RandomNetwork(nn.Module):
    """A stem, stages of the given kinds, and a head; images [B, 3, 8, 8] -> [B, 5]."""

    def __init__(self, kinds: Sequence[str], head: str, seed: int) -> None:
        super().__init__()
        rng = random.Random(seed)
        self.stem = block(3, 8)
        stages: list[Stage] = []
        width = 8
        for kind in kinds:
            stages.append(KINDS[kind](width, rng))
            width = stages[-1].width
        self.stages = nn.Sequential(*stages)
        self.kind = head
        with torch.no_grad():
            size = nn.Sequential(self.stem, self.stages).eval()(torch.zeros(1, 3, 8, 8)).shape[2:]
        self.train()
        if head == "convolution":
            self.head: nn.Module = nn.Conv2d(width, 5, 1)
        elif head == "hidden":
            self.head = nn.Sequential(nn.Linear(width, 7), nn.ReLU(), nn.Dropout(0.5), nn.Linear(7, 5))
        else:
            self.head = nn.Linear(width * size.numel() if head == "flatten" else width, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        x = self.stages(self.stem(images))
        if self.kind == "flatten":
            return self.head(x.flatten(1))
        if self.kind == "convolution":
            return self.head(x).mean((2, 3))
        logits = self.head(x.mean((2, 3)))
        return (logits, x) if self.kind == "two outputs" else logits


def random_network(kinds: Sequence[str], head: str, seed: int) -> tuple[nn.Module, torch.Tensor]:
    """Return the network in eval mode with random BatchNorm, and two images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = RandomNetwork(kinds, head, seed)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 1.5)
        return model.eval(), torch.randn(2, 3, 8, 8)


def hooks(model: nn.Module) -> int:
    """Return the number of hooks of a network's modules."""
    return sum(len(vars(module).get(name) or ()) for module in model.modules() for name in HOOKS)
