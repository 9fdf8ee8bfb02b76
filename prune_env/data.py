"""Data sets in memory, and their four disjoint splits.

train        what weights are learned from
calibration  a fixed part of train, for BatchNorm statistics and first-order importance
reward       held out of the train set: what the search sees
test         read once, at the end

Letters: N images, C channels, H and W pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from torch.nn import functional as F

from . import sources
from .sources import DataError, Source

__all__ = ["Augmentation", "DataError", "DataSplits", "Split", "load", "split"]


@dataclass(frozen=True)
class Split:
    """Images uint8 [N, C, H, W] and labels int64 [N]."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def balanced(self, count: int) -> Split:
        """The first images of every class, `count` in all; classes differ by one image at most.

        A class with fewer images gives all it has. Asking for as many images as there are, or more, gives all.
        """
        if count < 1:
            raise ValueError(f"a split needs at least one image, got count={count}")
        if count >= len(self):
            return self
        classes = self.labels.unique()
        share, extra = divmod(count, len(classes))
        rows = [
            (self.labels == label).nonzero()[: share + (position < extra), 0] for position, label in enumerate(classes)
        ]
        chosen = torch.cat(rows)
        return Split(self.images[chosen], self.labels[chosen])


@dataclass(frozen=True)
class Augmentation:
    """Random crop after padding with `pad` black pixels on each side, and a horizontal flip of half of the images."""

    pad: int = 4
    flip: bool = True

    def __call__(
        self, images: torch.Tensor, generator: torch.Generator, flipped: torch.Tensor | None = None
    ) -> torch.Tensor:
        """uint8 [B, C, H, W] -> the same shape, in channels_last memory. Padding is black before normalisation.

        flipped  bool [B]: which images to flip, if `flip` is on; random by default
        """
        batch, _, height, width = images.shape
        device, shifts = images.device, 2 * self.pad + 1
        rows, columns = torch.randint(shifts, (2, batch, 1), generator=generator).to(device)  # [B, 1] each
        rows = rows + torch.arange(height, device=device)  # [B, H]
        across = torch.arange(width, device=device).expand(batch, width)
        if self.flip:
            if flipped is None:
                flipped = torch.rand(batch, generator=generator) < 0.5
            across = torch.where(flipped.to(device)[:, None], across.flip(1), across)
        columns = columns + across  # [B, W]
        padded = F.pad(images, (self.pad,) * 4)
        image = torch.arange(batch, device=device)[:, None, None]
        return padded.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@dataclass(frozen=True)
class DataSplits:
    """Four disjoint splits (calibration is a part of train), and how images become network input."""

    name: str
    classes: tuple[str, ...]
    train: Split
    calibration: Split
    reward: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation = field(default_factory=Augmentation)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def example_input(self) -> torch.Tensor:
        """Two normalised training images, float32 [2, C, H, W]."""
        return self.normalise(self.train.images[:2])

    @cached_property
    def digest(self) -> str:
        """A fingerprint of images, labels, splits and normalisation: what a trained network depends on."""
        digest = hashlib.blake2b(repr((self.mean, self.std, self.augmentation)).encode(), digest_size=16)
        for part in (self.train, self.calibration, self.reward, self.test):
            digest.update(str(tuple(part.images.shape)).encode())
            digest.update(part.images.contiguous().numpy().data)
            digest.update(part.labels.contiguous().numpy().data)
        return digest.hexdigest()

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [B, C, H, W] -> (images / 255 - mean) / std, in channels_last memory."""
        mean = torch.tensor(self.mean, device=images.device).view(1, -1, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(1, -1, 1, 1)
        return (images.to(memory_format=torch.channels_last).float() / 255 - mean) / std

    def augmented(
        self, images: torch.Tensor, generator: torch.Generator, flipped: torch.Tensor | None = None
    ) -> torch.Tensor:
        """uint8 [B, C, H, W] -> the network input of training: augmented, then normalised."""
        return self.normalise(self.augmentation(images, generator, flipped))

    def with_normalisation(self, mean: Sequence[float], std: Sequence[float]) -> DataSplits:
        """The same splits for a network trained with another normalisation."""
        channels = self.image_shape[0]
        if len(mean) != channels or len(std) != channels or min(std) <= 0:
            raise ValueError(
                f"normalisation needs {channels} means and {channels} positive standard deviations, one per channel; "
                f"got mean={tuple(mean)}, std={tuple(std)}"
            )
        return replace(self, mean=tuple(map(float, mean)), std=tuple(map(float, std)))


def load(source: str | Path, *, cache: bool = True) -> DataSplits:
    """The four splits of `digits`, `cifar10`, `cifar100`, or an image folder PATH/{train,test}/<class>/*.

    A name wins over a folder of the same name; write './digits' for the folder. Raises DataError for anything that
    is missing or broken, naming the file or class.
    """
    if source == "digits":
        # Digits are not mirror images of each other, and 8 pixels leave room for a shift by one.
        return split(sources.digits(), reward_images=30, augmentation=Augmentation(pad=1, flip=False))
    if source in ("cifar10", "cifar100"):
        return split(sources.cifar(str(source)))
    if isinstance(source, str) and not Path(source).expanduser().exists():
        raise DataError(
            f"data {source!r} is neither 'digits', 'cifar10' nor 'cifar100', nor a folder PATH/{{train,test}}/<class>/*"
        )
    return split(sources.folder(Path(source), cache))


def split(
    source: Source,
    reward_images: int | None = None,
    calibration_images: int | None = None,
    augmentation: Augmentation | None = None,
) -> DataSplits:
    """Cuts a source into the four splits; mean and std are those of its training split.

    reward_images       the last ones of each class of the train set; default a tenth (500 for CIFAR-10)
    calibration_images  the first ones of each class; default a twentieth of the class, 20 at least
    """
    labels = source.train_labels
    reward = torch.zeros(len(labels), dtype=torch.bool)
    calibration = torch.zeros(len(labels), dtype=torch.bool)
    for label, name in enumerate(source.classes):
        rows = (labels == label).nonzero()[:, 0]
        held_out = reward_images or max(1, len(rows) // 10)
        if len(rows) - held_out < 1:
            raise DataError(
                f"class {name!r} of {source.name!r} has {len(rows)} training images; at least {held_out + 1} are "
                f"needed, of which {held_out} are held out for the reward"
            )
        reward[rows[-held_out:]] = True
        kept = rows[:-held_out]
        calibration[kept[: calibration_images or max(20, len(kept) // 20)]] = True
    train = source.train_images[~reward]
    mean, std = _statistics(train)
    return DataSplits(
        source.name,
        source.classes,
        Split(train, labels[~reward]),
        Split(source.train_images[calibration], labels[calibration]),
        Split(source.train_images[reward], labels[reward]),
        Split(source.test_images, source.test_labels),
        mean,
        std,
        augmentation or Augmentation(),
    )


def _statistics(images: torch.Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per-channel mean and standard deviation of uint8 images scaled to [0, 1], from exact integer histograms."""
    mean, std = [], []
    values = torch.arange(256, dtype=torch.float64) / 255
    for channel in range(images.shape[1]):
        share = torch.bincount(images[:, channel].flatten().long(), minlength=256).double()
        share /= share.sum()
        average = (share * values).sum()
        deviation = (share * (values - average) ** 2).sum().sqrt()
        if deviation == 0:
            raise DataError(f"channel {channel} of the training images is constant; there is nothing to learn from")
        mean.append(float(average))
        std.append(float(deviation))
    return tuple(mean), tuple(std)
