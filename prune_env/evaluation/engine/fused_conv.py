"""Convolution, BatchNorm, addition and ReLU as one module that can also estimate the BatchNorm statistics.

A `FusedConv` runs in one of two ways. Folded: the stored statistics are part of the weights, and oneDNN adds and
rectifies while it writes the result of the convolution. Calibrating: the statistics of each batch are used, as in
training, and averaged over batches (EagleEye, Li et al., ECCV 2020); a depthwise 1x1 convolution then scales, shifts,
adds and rectifies in one pass. Letters: B images, C and K channels, H and W positions, N sampled values of a channel.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

POSITIONS = 8192
"""Number of values of a batch and channel that statistics are estimated from, if there are more.

The error of the estimate is far below the differences between images; using all values would take as long as the
convolution itself.
"""


class Geometry(NamedTuple):
    """How a convolution moves over its input."""

    stride: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (0, 0)
    dilation: tuple[int, ...] = (1, 1)
    groups: int | None = None
    """None for as many groups as there are channels."""


SCALING = Geometry()
"""A depthwise 1x1 convolution: scales every channel."""


class Epilogue(NamedTuple):
    """What follows a convolution: relu(result + other)."""

    other: torch.Tensor | None = None
    """Added to the result, [B, K, H, W]; None for nothing."""
    relu: bool = False
    overwrites: bool = False
    """Whether the result may be written to the memory of `other`."""


NO_EPILOGUE = Epilogue()


class FusedConv(nn.Module):
    """relu(norm(conv(x)) + other), where norm, other and relu may be missing.

    The convolution and the BatchNorm hold float32 tensors, from which `fold` makes the weights that are used.
    """

    overwrites: bool
    """Whether the result may be written to the memory of `other`, because nothing else uses it afterwards."""
    layout: torch.memory_format
    """Memory format of the folded weights."""
    positions: int
    """Number of values of a batch and channel that statistics are estimated from, at least."""

    def __init__(
        self, conv: nn.Conv2d, norm: nn.BatchNorm2d | None = None, norm_path: str = "", relu: bool = False
    ) -> None:
        """Fuse modules of a network.

        Args:
            conv: The convolution.
            norm: The BatchNorm behind it, None if there is none.
            norm_path: Path of the BatchNorm in the network.
            relu: Whether ReLU follows.
        """
        super().__init__()
        self._modules_fused = (conv, norm)  # a tuple hides them from code that looks for BatchNorm among the submodules
        self.norm_path, self.relu = norm_path, relu
        self.overwrites = False
        self.layout = torch.channels_last
        self.positions = POSITIONS
        self.calibrating = False
        self._weight: torch.Tensor | None = None  # None until it is folded
        self._bias: torch.Tensor | None
        self._means: list[torch.Tensor] = []  # of each batch, float32 [K]
        self._variances: list[torch.Tensor] = []

    @property
    def conv(self) -> nn.Conv2d:
        """The convolution."""
        return self._modules_fused[0]

    @property
    def norm(self) -> nn.BatchNorm2d | None:
        """The BatchNorm, None if there is none."""
        return self._modules_fused[1]

    @property
    def replaced(self) -> tuple[nn.Module, ...]:
        """The modules that this one replaces."""
        return tuple(module for module in self._modules_fused if module is not None)

    def invalidate(self) -> None:
        """Discard the folded weights after the tensors have changed; the next forward pass folds them again."""
        self._weight = None

    def fold(self, dtype: torch.dtype) -> None:
        """Combine the convolution and the stored statistics into one weight and one bias of the given type."""
        weight, bias = self.conv.weight, self.conv.bias
        if self.norm is not None:
            scale, shift = _scale_and_shift(self.norm, self.norm.running_mean, self.norm.running_var)
            weight, bias = weight * scale[:, None, None, None], shift if bias is None else bias * scale + shift
        self._weight = converted(weight, dtype, self.layout)
        self._bias = None if bias is None else converted(bias, dtype)

    def start_calibration(self, dtype: torch.dtype) -> None:
        """Use the statistics of each batch from now on, and collect them."""
        if self.norm is not None:
            self.calibrating, self._means, self._variances = True, [], []
            # Without a bias, because subtracting the batch's mean would remove it again.
            self._weight, self._bias = converted(self.conv.weight, dtype, self.layout), None

    def end_calibration(self, dtype: torch.dtype) -> None:
        """Store the averages of the collected statistics, if there are any, and fold them."""
        if self.norm is not None and self._means:
            self.norm.running_mean = torch.stack(self._means).mean(0)
            self.norm.running_var = torch.stack(self._variances).mean(0)
            if self.conv.bias is not None:
                self.norm.running_mean += self.conv.bias
        self.calibrating, self._means, self._variances = False, [], []
        self.fold(dtype)

    def forward(self, x: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
        """Return relu(norm(conv(x)) + other), [B, K, H', W'], of x [B, C, H, W] and other [B, K, H', W']."""
        conv, norm = self._modules_fused
        assert not isinstance(conv.padding, str)
        geometry = Geometry(conv.stride, conv.padding, conv.dilation, conv.groups)
        epilogue = Epilogue(other, self.relu, self.overwrites)
        if self._weight is None:
            self.fold(x.dtype)
        assert self._weight is not None
        if not self.calibrating:
            return convolution(x, self._weight, self._bias, geometry, epilogue)
        assert norm is not None
        y = convolution(x, self._weight, None, geometry)
        scale, shift = (converted(part, x.dtype) for part in _scale_and_shift(norm, *self._batch_statistics(y)))
        return convolution(y, scale[:, None, None, None], shift, SCALING, epilogue)

    def _batch_statistics(self, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and biased variance of y [B, K, H, W], float32 [K]. Unbiased ones are collected, as in training."""
        values = sample(y, self.positions)  # [N, K]
        if len(values) < 2:
            raise ValueError("BatchNorm statistics need more than one value for each channel; give more images")
        mean, variance = y.new_zeros(2, y.shape[1], dtype=torch.float32)
        _, biased = torch.batch_norm_update_stats(values, mean, variance, 1.0)
        self._means.append(mean)
        self._variances.append(variance)
        return mean, biased


def sample(y: torch.Tensor, positions: int = POSITIONS) -> torch.Tensor:
    """Return the values that statistics are estimated from.

    Some lines of every image are taken, spread over its height, with different lines in different images, so that no
    part of the images has a larger weight.

    Args:
        y: Features [B, K, H, W].
        positions: How many values of a channel to take at least, if there are as many.

    Returns:
        Values [N, K].
    """
    count, channels, height, width = y.shape
    lines = y.permute(0, 2, 3, 1).reshape(count * height, width * channels)  # in their order in memory
    taken = -(-positions // (count * width))  # lines of each image
    if taken < height:
        # The lines of an image are evenly spaced; each image starts a fraction of that distance after the last one.
        number = torch.arange(count * taken, device=y.device).view(taken, count).T  # [B, taken]
        first = torch.arange(count, device=y.device)[:, None] * height
        lines = lines.index_select(0, (first + number * height // (count * taken)).flatten())
    return lines.view(-1, channels)


def convolution(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    geometry: Geometry,
    epilogue: Epilogue = NO_EPILOGUE,
) -> torch.Tensor:
    """Return relu(conv(x) + other) for the epilogue's `relu` and `other`.

    On a CPU the fused operators of torch.compile are called directly, which needs no compilation.

    Args:
        x: Features [B, C, H, W].
        weight: [K, C / groups, height, width].
        bias: [K], or None.
        geometry: Stride, padding, dilation and groups.
        epilogue: What follows the convolution.
    """
    stride, padding, dilation, groups = geometry
    other, relu, overwrites = epilogue
    groups = groups or x.shape[1]
    if _is_fused(x):
        fused = torch.ops.mkldnn._convolution_pointwise
        if other is None:
            return fused(x, weight, bias, padding, stride, dilation, groups, "relu" if relu else "none", [], "")
        other = other.contiguous(memory_format=torch.channels_last)
        if _channels_last(x) and _channels_last(other) and other.dtype == x.dtype:
            after: tuple[Any, ...] = (padding, stride, dilation, groups, "add", 1.0, "relu" if relu else None, [], "")
            if overwrites or groups > 1:  # convolutions with groups can only be fused in place
                result = other if overwrites else other.clone()
                return torch.ops.mkldnn._convolution_pointwise_.binary(result, x, weight, bias, *after)
            return fused.binary(x, other, weight, bias, *after)
    if geometry is SCALING and bias is not None:  # without oneDNN a convolution is not faster
        y = torch.addcmul(bias[:, None, None], x, weight[None, :, 0])
    else:
        y = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    if other is not None:
        y = y + other
    return y.relu_() if relu else y


def converted(
    tensor: torch.Tensor, dtype: torch.dtype, layout: torch.memory_format = torch.channels_last
) -> torch.Tensor:
    """Return a tensor in the precision and memory layout that it is used in."""
    return tensor.detach().to(dtype, memory_format=layout if tensor.ndim == 4 else torch.contiguous_format)


def _is_fused(x: torch.Tensor) -> bool:
    """Whether oneDNN's operators support x; bfloat16 needs a processor with AVX-512 or native conversion."""
    if x.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return x.dtype != torch.bfloat16 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _channels_last(x: torch.Tensor) -> bool:
    """Whether x is surely channels-last; with one channel or position both layouts fit, and torch may take either."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _scale_and_shift(
    norm: nn.BatchNorm2d, mean: torch.Tensor | None, variance: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """BatchNorm as x * scale + shift, [K] each."""
    assert mean is not None
    assert variance is not None
    scale = (variance + norm.eps).rsqrt()
    if norm.weight is None:
        return scale, -mean * scale
    scale = scale * norm.weight
    return scale, norm.bias - mean * scale
