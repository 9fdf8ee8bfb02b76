"""Convolution, BatchNorm, addition and ReLU as one call; and BatchNorm statistics estimated on the way.

A unit runs in one of two ways. Folded: the statistics are part of the weights, and oneDNN adds and rectifies while it
writes the convolution's result. Calibrating: the statistics are those of the batch, as in training, and are averaged
over batches (EagleEye, Li et al., ECCV 2020); a depthwise 1x1 convolution then scales, shifts, adds and rectifies in
one pass. Letters: B images, C and K channels, H and W positions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

POSITIONS = 8192
"""Of a batch and channel that statistics are taken from, if there are more: what they would tell is far below the noise
between images, and reading them all costs as much as the convolution."""

Geometry = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int | None]
"""Stride, padding, dilation and groups of a convolution; None: as many as there are channels."""

SCALING: Geometry = ((1, 1), (0, 0), (1, 1), None)


class Unit(nn.Module):
    """relu(norm(conv(x)) + other), where norm, other and relu may be missing.

    conv, norm    hold float32 tensors, from which `fold` makes what runs
    norm_path     where the model has `norm`
    """

    overwrites: bool
    """Nobody needs `other` afterwards: its memory takes the result."""
    positions: int
    """At least so many values of a batch and channel give its statistics."""

    def __init__(
        self,
        conv: nn.Conv2d,
        norm: nn.BatchNorm2d | None = None,
        norm_path: str = "",
        relu: bool = False,
    ) -> None:
        super().__init__()
        self._held = (conv, norm)  # no submodules: whoever looks for a BatchNorm must not find this one
        self.norm_path, self.relu = norm_path, relu
        self.overwrites = False
        self.positions = POSITIONS
        self.calibrating = False
        self._weight: torch.Tensor | None = None  # None until it is folded
        self._bias: torch.Tensor | None
        self._means: list[torch.Tensor] = []  # of each batch, float32 [K]
        self._variances: list[torch.Tensor] = []

    @property
    def held(self) -> tuple[nn.Module, ...]:
        """The modules whose place it has taken."""
        return tuple(module for module in self._held if module is not None)

    @property
    def conv(self) -> nn.Conv2d:
        return self._held[0]

    @property
    def norm(self) -> nn.BatchNorm2d | None:
        return self._held[1]

    def forget(self) -> None:
        """What was folded is out of date; the next forward pass folds anew, in the precision of its images."""
        self._weight = None

    def fold(self, dtype: torch.dtype) -> None:
        """Makes convolution and stored statistics one weight and one bias."""
        weight, bias = self.conv.weight, self.conv.bias
        if self.norm is not None:
            scale, shift = _scale_and_shift(self.norm, self.norm.running_mean, self.norm.running_var)
            weight, bias = weight * scale[:, None, None, None], shift if bias is None else bias * scale + shift
        self._weight, self._bias = converted(weight, dtype), None if bias is None else converted(bias, dtype)

    def start_calibration(self, dtype: torch.dtype) -> None:
        """From here on, batches give the statistics."""
        if self.norm is not None:
            self.calibrating, self._means, self._variances = True, [], []
            # Without a bias: the batch's mean would take it away again.
            self._weight, self._bias = converted(self.conv.weight, dtype), None

    def end_calibration(self, dtype: torch.dtype) -> None:
        """The averages become the stored statistics, if any batch came by."""
        if self.norm is not None and self._means:
            self.norm.running_mean = torch.stack(self._means).mean(0)
            self.norm.running_var = torch.stack(self._variances).mean(0)
            if self.conv.bias is not None:
                self.norm.running_mean += self.conv.bias
        self.calibrating, self._means, self._variances = False, [], []
        self.fold(dtype)

    def forward(self, x: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
        """[B, C, H, W], and [B, K, H', W'] that is added to the result -> [B, K, H', W']."""
        conv, norm = self._held
        assert not isinstance(conv.padding, str)
        geometry = (conv.stride, conv.padding, conv.dilation, conv.groups)
        if self._weight is None:
            self.fold(x.dtype)
        assert self._weight is not None
        if not self.calibrating:
            return convolution(x, self._weight, self._bias, geometry, other, self.relu, self.overwrites)
        assert norm is not None
        y = convolution(x, self._weight, None, geometry)
        scale, shift = (converted(part, x.dtype) for part in _scale_and_shift(norm, *self._statistics_of(y)))
        return convolution(y, scale[:, None, None, None], shift, SCALING, other, self.relu, self.overwrites)

    def _statistics_of(self, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and biased variance of y [B, K, H, W], float32 [K]; the average is of unbiased ones, as in training."""
        values = sample(y, self.positions)  # [N, K]
        if len(values) < 2:
            raise ValueError("BatchNorm statistics need more than one value for each channel; give more images")
        mean, variance = y.new_zeros(2, y.shape[1], dtype=torch.float32)
        _, biased = torch.batch_norm_update_stats(values, mean, variance, 1.0)
        self._means.append(mean)
        self._variances.append(variance)
        return mean, biased


def sample(y: torch.Tensor, positions: int = POSITIONS) -> torch.Tensor:
    """[B, K, H, W] -> [N, K], the values that statistics are taken from: at least `positions`, if there are as many.

    Some lines of every image, spread over its height and other ones in other images, so that no part counts more.
    """
    count, channels, height, width = y.shape
    lines = y.permute(0, 2, 3, 1).reshape(count * height, width * channels)  # as they lie in memory
    taken = -(-positions // (count * width))  # lines of each image
    if taken < height:
        # Every image's lines are evenly apart; from image to image they move on by the same part of that distance.
        number = torch.arange(count * taken, device=y.device).view(taken, count).T  # [B, taken]
        first = torch.arange(count, device=y.device)[:, None] * height
        lines = lines.index_select(0, (first + number * height // (count * taken)).flatten())
    return lines.view(-1, channels)


def convolution(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    geometry: Geometry,
    other: torch.Tensor | None = None,
    relu: bool = False,
    overwrites: bool = False,
) -> torch.Tensor:
    """relu(conv(x) + other), in the memory of `other` if it may be overwritten.

    On a CPU by the fused operators that torch.compile uses; they need no compiling.
    """
    stride, padding, dilation, groups = geometry
    groups = groups or x.shape[1]
    if _is_fused(x):
        fused = torch.ops.mkldnn._convolution_pointwise
        if other is None:
            return fused(x, weight, bias, padding, stride, dilation, groups, "relu" if relu else "none", [], "")
        other = other.contiguous(memory_format=torch.channels_last)
        if _channels_last(x) and _channels_last(other) and other.dtype == x.dtype:
            after: tuple[Any, ...] = (padding, stride, dilation, groups, "add", 1.0, "relu" if relu else None, [], "")
            if overwrites or groups > 1:  # convolutions in groups are fused in place only
                result = other if overwrites else other.clone()
                return torch.ops.mkldnn._convolution_pointwise_.binary(result, x, weight, bias, *after)
            return fused.binary(x, other, weight, bias, *after)
    if geometry is SCALING and bias is not None:  # elsewhere no faster as a convolution
        y = torch.addcmul(bias[:, None, None], x, weight[None, :, 0])
    else:
        y = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    if other is not None:
        y = y + other
    return y.relu_() if relu else y


def _is_fused(x: torch.Tensor) -> bool:
    """Whether oneDNN's operators take it: bfloat16 only on processors that have AVX-512 or convert it natively."""
    if x.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return x.dtype != torch.bfloat16 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _channels_last(x: torch.Tensor) -> bool:
    """Beyond doubt: where a single channel or position leaves both layouts possible, torch may take the other one."""
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


def converted(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """In the precision and the layout in which it runs."""
    layout = torch.channels_last if tensor.ndim == 4 else torch.contiguous_format
    return tensor.detach().to(dtype, memory_format=layout)
