"""Data sets in memory: one split, and the four splits of a data set.

train        the images that weights are learned from
calibration  a fixed part of train, for BatchNorm statistics and first-order importance
reward       held out of the training images; the search measures accuracies on it
test         read once, at the end

Letters: N images, B images in a batch, C channels, H and W pixels, K targets per image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

from ..common.memory_format import in_layout
from .augmentation import Augmentation
from .normalisation import channel_constants


@dataclass(frozen=True)
class Split:
    """Images and their labels."""

    images: torch.Tensor
    """uint8 or float32 [N, C, H, W]."""
    labels: torch.Tensor
    """Class numbers int64 [N], or floating-point targets float32 [N] or [N, K]."""

    def __len__(self) -> int:
        return len(self.labels)

    def balanced(self, count: int) -> Split:
        """Return the first images of every class.

        Args:
            count: Number of images in total; the numbers per class differ by at most one. A class with fewer images
                contributes all it has.

        Returns:
            The smaller split, or this split if it has no more than `count` images. Without classes, the images are
            evenly spaced over the split.

        Raises:
            ValueError: `count` is below 1.
        """
        if count < 1:
            raise ValueError(f"a split needs at least one image, got count={count}")
        if count >= len(self):
            return self
        if self.labels.is_floating_point():
            chosen = evenly_spaced(len(self), count)
            return Split(self.images[chosen], self.labels[chosen])
        classes = self.labels.unique()
        share, extra = divmod(count, len(classes))
        rows = [
            (self.labels == label).nonzero()[: share + (position < extra), 0] for position, label in enumerate(classes)
        ]
        chosen = torch.cat(rows)
        return Split(self.images[chosen], self.labels[chosen])


@dataclass(frozen=True)
class DataSplits:
    """Four disjoint splits (calibration is a part of train), and how their images become network input.

    Example:
        >>> data = load("digits")
        >>> inputs = data.normalise(data.test.images)  # float32 [N, 1, 8, 8]
    """

    name: str
    """Name of the data set, for titles and messages."""
    classes: tuple[str, ...]
    """Names of the classes; empty where labels are floating-point targets (several labels at once, or a regression)."""
    train: Split
    """The images that weights are learned from."""
    calibration: Split
    """A part of `train`, for BatchNorm statistics and first-order importance."""
    reward: Split
    """Held out of the training images; the search measures accuracies on it."""
    test: Split
    """For the final accuracies only."""
    mean: tuple[float, ...]
    """Mean per channel; of images scaled to [0, 1] if they are uint8."""
    std: tuple[float, ...]
    """Standard deviation per channel, in the units of `mean`."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """Applied to images in training and in recalibration."""
    normalisation_given: bool = False
    """Whether `mean` and `std` were given. Computed ones give way to those that a registered network needs."""

    @property
    def summary(self) -> str:
        """Sizes and normalisation in one line."""
        sizes = ", ".join(f"{len(getattr(self, part)):,} {part}" for part in ("train", "reward", "test"))
        shape = "x".join(map(str, self.image_shape))
        mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        source = (
            "" if self.normalisation_given else " (those of the train split; if it was trained with others, give them)"
        )
        return f"{self.name}: {sizes} images of {shape}, normalised by mean {mean} and std {std}{source}"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one image, (C, H, W)."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def example_input(self) -> torch.Tensor:
        """Two normalised training images, float32 [2, C, H, W]."""
        return self.normalise(self.train.images[:2])

    @cached_property
    def fingerprint(self) -> str:
        """A hash of images, labels, splits, normalisation and augmentation."""
        digest = hashlib.blake2b(repr((self.mean, self.std, self.augmentation)).encode(), digest_size=16)
        if self.augmentation.fill:
            digest.update(f"fill={self.augmentation.fill}".encode())
        for part in (self.train, self.calibration, self.reward, self.test):
            digest.update(str(tuple(part.images.shape)).encode())
            if part.images.is_floating_point() or part.labels.is_floating_point():
                digest.update(f"{part.images.dtype} {part.labels.dtype} {tuple(part.labels.shape)}".encode())
            digest.update(part.images.contiguous().numpy().data)
            digest.update(part.labels.contiguous().numpy().data)
        return digest.hexdigest()

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """Return (images - mean) / std.

        Args:
            images: Images [B, C, H, W] on any device; uint8 images are first divided by 255.

        Returns:
            float32 [B, C, H, W] on the same device, in contiguous memory, which every network takes.
        """
        mean = torch.tensor(self.mean, device=images.device).view(1, -1, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(1, -1, 1, 1)
        scaled = in_layout(images, torch.contiguous_format).float()
        return ((scaled if images.is_floating_point() else scaled / 255) - mean) / std

    def augmented(
        self, images: torch.Tensor, generator: torch.Generator, flipped: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return images [B, C, H, W] as training input: augmented, then normalised. See `Augmentation.__call__`."""
        return self.normalise(self.augmentation(images, generator, flipped))

    def with_normalisation(self, mean: Sequence[float] | str, std: Sequence[float] | str | None = None) -> DataSplits:
        """Return the same splits with the normalisation that a network was trained with.

        Args:
            mean: Mean per channel, or 'imagenet', 'cifar10' or 'none', which stand for mean and std.
            std: Standard deviation per channel.

        Raises:
            DataError: There is not one finite mean and one positive standard deviation for every channel.
        """
        mean, std = channel_constants(self.train.images, mean, std)
        return replace(self, mean=mean, std=std, normalisation_given=True)


def evenly_spaced(length: int, count: int) -> torch.Tensor:
    """Return `count` different row numbers below `length`, ascending and evenly spaced, int64 [count]."""
    return torch.arange(count) * length // count
