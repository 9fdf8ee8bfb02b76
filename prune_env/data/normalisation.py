"""Normalisation of images: mean and standard deviation per channel, as numbers or by name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch

from .errors import DataError

if TYPE_CHECKING:
    from .splits import Split

Name = Literal["imagenet", "cifar10", "none"]
"""Of images scaled to [0, 1]. 'none' leaves them as they are."""

Normalisation = tuple[Sequence[float] | str | None, Sequence[float] | str | None]
"""Mean and standard deviation per channel, or names."""

_CONSTANTS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
}


def check_pair(mean: Sequence[float] | str | None, std: Sequence[float] | str | None) -> None:
    """Check that mean and standard deviation are given together, or one name for both.

    Raises:
        DataError: Only one of them is given as numbers, or a name is unknown or differs from the other one.
    """
    named = [value for value in (mean, std) if isinstance(value, str)]
    if unknown := [name for name in named if name not in (*_CONSTANTS, "none")]:
        raise DataError(f"mean and std {unknown[0]!r} is unknown; give numbers, or one of imagenet, cifar10, none")
    both = mean is not None and std is not None
    if (named and both and mean != std) or (not named and (mean is None) != (std is None)):
        raise DataError(f"mean and std belong together, as numbers or by one name; got mean={mean}, std={std}")


def channel_constants(
    split: Split, mean: Sequence[float] | str | None, std: Sequence[float] | str | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation as tuples with one number for every channel.

    Args:
        split: The images.
        mean: Numbers, or a name that stands for both.
        std: Numbers, or a name that stands for both.

    Raises:
        DataError: There is not one finite mean and one positive standard deviation for every channel, or a mean is
            above 1, although uint8 images are scaled to [0, 1].
    """
    check_pair(mean, std)
    channels = split.shape[0]
    if "none" in (name for name in (mean, std) if isinstance(name, str)):
        return (0.0,) * channels, (1.0,) * channels
    for name in (mean, std):
        if isinstance(name, str):
            mean, std = _CONSTANTS[name]
            break
    try:
        means, deviations = tuple(map(float, mean)), tuple(map(float, std))  # type: ignore[arg-type]
        usable = all(map(math.isfinite, means)) and all(0 < value < math.inf for value in deviations)
    except (TypeError, ValueError):
        means, deviations, usable = (), (), False
    if len(means) != channels or len(deviations) != channels or not usable:
        raise DataError(
            f"normalisation needs {channels} finite means and {channels} positive standard deviations, one per "
            f"channel; got mean={means or mean}, std={deviations or std}"
        )
    if not split.dtype.is_floating_point and max(means) > 1:
        raise DataError(
            f"mean={means} is that of pixels from 0 to 255, but uint8 images are scaled to [0, 1] first; divide mean "
            "and std by 255"
        )
    return means, deviations


def statistics(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel of uint8 images scaled to [0, 1], from exact histograms.

    Raises:
        DataError: A channel is constant.
    """
    channels = split.shape[0]
    counts = torch.zeros(channels, 256, dtype=torch.int64)
    for images, _ in split.batches():
        for channel in range(channels):
            counts[channel] += torch.bincount(images[:, channel].flatten(), minlength=256)
    mean, std = [], []
    values = torch.arange(256, dtype=torch.float64) / 255
    for channel, count in enumerate(counts):
        share = count.double() / count.sum()
        average = (share * values).sum()
        deviation = (share * (values - average) ** 2).sum().sqrt()
        if deviation == 0:
            raise DataError(f"channel {channel} of the training images is constant; there is nothing to learn from")
        mean.append(float(average))
        std.append(float(deviation))
    return tuple(mean), tuple(std)
