"""One split of a data set, in memory or streamed, and the four splits of a data set.

train        the images that weights are learned from
calibration  a fixed part of train, for BatchNorm statistics and first-order importance
reward       held out of the training images; the search measures accuracies on it
test         read once, at the end

Letters: N images, B images in a batch, C channels, H and W pixels, K targets per image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import torch
from tqdm import tqdm

from ..common.memory_format import in_layout
from .augmentation import Augmentation, Part
from .normalisation import channel_constants

READ_AT_ONCE = 64
"""Images per batch where all images of a split are read."""


class Split(Protocol):
    """Images with their labels, in memory or read when they are used.

    A subclass defines `images`, `labels`, `shape`, `dtype`, `batch`, `select` and `describe`, and inherits the rest.
    """

    images: torch.Tensor
    """All images as one tensor [N, C, H, W]. A streamed split reads them all; `batches` needs less memory."""
    labels: torch.Tensor
    """Class numbers int64 [N], masks uint8 [N, H, W] with the class number of every pixel (255: it does not count), or
    floating-point targets float32 [N, ...]."""

    @property
    def has_masks(self) -> bool:
        """Whether every pixel has a class."""
        return self.labels.ndim == 3 and not self.labels.is_floating_point()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image, (C, H, W)."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of the images: uint8 or float32."""

    def batch(self, rows: torch.Tensor, seed: int = 0) -> torch.Tensor:
        """Return the images [B, C, H, W] of some rows.

        Args:
            rows: Row numbers, int64 [B].
            seed: Seed of random transforms. An image depends on its row and on the seed only.
        """

    def select(self, rows: torch.Tensor) -> Split:
        """Return the split of some rows, int64 [B]."""

    def describe(self, digest: hashlib.blake2b) -> None:
        """Add to a digest what identifies images and labels."""

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, order: Sequence[torch.Tensor], seed: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield images and labels of batches whose rows are known in advance, so that they can be read ahead.

        Args:
            order: Row numbers of every batch, int64 [B] each.
            seed: Seed of random transforms.
        """
        for rows in order:
            yield self.batch(rows, seed), self.labels[rows]

    def batches(self, size: int = READ_AT_ONCE) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield all images and labels in order, in batches of `size`; the last one may be smaller."""
        yield from self.read(torch.arange(len(self)).split(size))

    def first(self, count: int) -> torch.Tensor:
        """Return the first `count` images, or all if there are fewer."""
        return self.batch(torch.arange(min(count, len(self))))

    def in_memory(self) -> TensorSplit:
        """Return the split with all its images as one tensor."""
        images, labels, start = torch.empty((len(self), *self.shape), dtype=self.dtype), [], 0
        batches = tqdm(self.batches(), "reading images", -(-len(self) // READ_AT_ONCE), disable=len(self) < 1000)
        for batch, of_batch in batches:
            images[start : start + len(batch)] = batch
            labels.append(of_batch)
            start += len(batch)
        return TensorSplit(images, torch.cat(labels))

    def balanced_rows(self, count: int) -> torch.Tensor:
        """Return the rows of the first images of every class, int64.

        Args:
            count: Number of images in total; the numbers per class differ by at most one. A class with fewer images
                contributes all it has.

        Returns:
            All rows if there are no more than `count`. Where an image has no class of its own, the rows are evenly
            spaced over the split.

        Raises:
            ValueError: `count` is below 1.
        """
        if count < 1:
            raise ValueError(f"a split needs at least one image, got count={count}")
        if count >= len(self):
            return torch.arange(len(self))
        if self.has_masks or self.labels.is_floating_point():
            return evenly_spaced(len(self), count)
        classes = self.labels.unique()
        share, extra = divmod(count, len(classes))
        return torch.cat(
            [
                (self.labels == label).nonzero()[: share + (position < extra), 0]
                for position, label in enumerate(classes)
            ]
        )

    def balanced(self, count: int) -> TensorSplit:
        """Return the first images of every class in memory; see `balanced_rows`.

        Raises:
            ValueError: `count` is below 1.
        """
        rows = self.balanced_rows(count)
        return (self.select(rows) if len(rows) < len(self) else self).in_memory()


@dataclass(frozen=True, eq=False)
class TensorSplit(Split):
    """A split whose images are in memory."""

    images: torch.Tensor
    """uint8 or float32 [N, C, H, W]."""
    labels: torch.Tensor
    """Class numbers int64 [N], masks uint8 [N, H, W], or floating-point targets float32 [N, ...]."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image, (C, H, W)."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def dtype(self) -> torch.dtype:
        """Type of the images."""
        return self.images.dtype

    def batch(self, rows: torch.Tensor, seed: int = 0) -> torch.Tensor:
        """Return the images [B, C, H, W] of some rows."""
        return self.images[rows]

    def batches(self, size: int = READ_AT_ONCE) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield all images and labels in order, in batches of `size`; the last one may be smaller."""
        return zip(self.images.split(size), self.labels.split(size), strict=True)

    def select(self, rows: torch.Tensor) -> TensorSplit:
        """Return the split of some rows, int64 [B]."""
        return TensorSplit(self.images[rows], self.labels[rows])

    def in_memory(self) -> TensorSplit:
        """Return this split."""
        return self

    def describe(self, digest: hashlib.blake2b) -> None:
        """Add images and labels to a digest."""
        digest.update(str(tuple(self.images.shape)).encode())
        if self.images.is_floating_point() or self.labels.is_floating_point() or self.has_masks:
            digest.update(f"{self.images.dtype} {self.labels.dtype} {tuple(self.labels.shape)}".encode())
        digest.update(self.images.contiguous().numpy().data)
        digest.update(self.labels.contiguous().numpy().data)


@dataclass(frozen=True, eq=False)
class InputSplit(Split):
    """Another split as network input, which a metric reads; images are converted when they are used."""

    split: Split
    convert: Callable[[torch.Tensor], torch.Tensor]
    """Makes network input of images [B, C, H, W]."""
    device: torch.device | str
    """Device of the labels."""

    @property
    def labels(self) -> torch.Tensor:  # type: ignore[override]
        """All labels [N, ...]."""
        return self.split.labels.to(self.device)

    @property
    def has_masks(self) -> bool:
        """Whether every pixel has a class."""
        return self.split.has_masks

    def __len__(self) -> int:
        return len(self.split)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image, (C, H, W)."""
        return self.split.shape

    @property
    def dtype(self) -> torch.dtype:
        """Type of the network input."""
        return self.first(1).dtype

    @property
    def images(self) -> torch.Tensor:  # type: ignore[override]
        """All inputs as one tensor [N, C, H, W]; `batches` needs less memory."""
        return torch.cat([images for images, _ in self.batches()])

    def batches(self, size: int = READ_AT_ONCE) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield all inputs and labels in order, in batches of `size`; the last one may be smaller."""
        for images, labels in self.split.batches(size):
            yield self.convert(images), labels.to(self.device)

    def batch(self, rows: torch.Tensor, seed: int = 0) -> torch.Tensor:
        """Return the inputs [B, C, H, W] of some rows."""
        return self.convert(self.split.batch(rows, seed))

    def read(self, order: Sequence[torch.Tensor], seed: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield inputs and labels of batches."""
        for images, labels in self.split.read(order, seed):
            yield self.convert(images), labels.to(self.device)

    def select(self, rows: torch.Tensor) -> InputSplit:
        """Return the split of some rows, int64 [B]."""
        return InputSplit(self.split.select(rows), self.convert, self.device)

    def describe(self, digest: hashlib.blake2b) -> None:
        """Add what identifies the other split to a digest."""
        self.split.describe(digest)


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
    """Names of the classes of images or pixels; empty where labels are floating-point targets (several labels at once,
    or a regression)."""
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
    def has_masks(self) -> bool:
        """Whether every pixel has a class, instead of every image."""
        return self.train.has_masks

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one image, (C, H, W)."""
        return self.train.shape

    @property
    def example_input(self) -> torch.Tensor:
        """Two normalised training images, float32 [2, C, H, W]."""
        return self.normalise(self.train.first(2))

    @cached_property
    def fingerprint(self) -> str:
        """A hash of images, labels, splits, normalisation and augmentation.

        Streamed images are identified by names, sizes and times of their files instead of pixels.
        """
        digest = hashlib.blake2b(repr((self.mean, self.std, self.augmentation)).encode(), digest_size=16)
        if self.augmentation.fill:
            digest.update(f"fill={self.augmentation.fill}".encode())
        for part in (self.train, self.calibration, self.reward, self.test):
            part.describe(digest)
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
        self,
        images: torch.Tensor,
        generator: torch.Generator,
        flipped: torch.Tensor | None = None,
        part: Part | None = None,
    ) -> torch.Tensor:
        """Return images [B, C, H, W] as training input: augmented, then normalised. See `Augmentation.__call__`."""
        return self.normalise(self.augmentation(images, generator, flipped, part))

    def training_batch(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        generator: torch.Generator,
        flipped: torch.Tensor | None = None,
        part: Part | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a batch as a step of training takes it: images as from `augmented`, and their labels.

        Args:
            images: Images [B, C, H, W], not normalised.
            labels: Their labels [B, ...]. Masks move with the images.
            generator: Source of the random numbers.
            flipped: bool [B], which images to flip if the augmentation flips; random by default.
            part: Size of a larger batch, and which part of it the images are.

        Returns:
            Network input float32 [B, C, H, W], and labels: masks as int64 [B, H, W], others unchanged.
        """
        if not self.has_masks:
            return self.augmented(images, generator, flipped, part), labels
        images, masks = self.augmentation.with_masks(images, labels, generator, flipped, part)
        return self.normalise(images), masks.long()

    def with_normalisation(self, mean: Sequence[float] | str, std: Sequence[float] | str | None = None) -> DataSplits:
        """Return the same splits with the normalisation that a network was trained with.

        Args:
            mean: Mean per channel, or 'imagenet', 'cifar10' or 'none', which stand for mean and std.
            std: Standard deviation per channel.

        Raises:
            DataError: There is not one finite mean and one positive standard deviation for every channel.
        """
        mean, std = channel_constants(self.train, mean, std)
        return replace(self, mean=mean, std=std, normalisation_given=True)


def evenly_spaced(length: int, count: int) -> torch.Tensor:
    """Return `count` different row numbers below `length`, ascending and evenly spaced, int64 [count]."""
    return torch.arange(count) * length // count
