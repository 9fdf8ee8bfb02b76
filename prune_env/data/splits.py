"""Data sets in memory, and their four disjoint splits.

train        what weights are learned from
calibration  a fixed part of train, for BatchNorm statistics and first-order importance
reward       held out of the train set: what the search sees
test         read once, at the end

Letters: N images, C channels, H and W pixels.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from ..common.expect import expect
from . import sources
from . import user_data as own_data
from .sources import DataError, Source, by_class

__all__ = [
    "Augmentation",
    "DataError",
    "DataSplits",
    "Split",
    "from_datasets",
    "from_folder",
    "from_tensors",
    "load",
    "split",
]


@dataclass(frozen=True)
class Split:
    """Images uint8 or float32 [N, C, H, W]; labels int64 [N], or float32 [N] or [N, K] for heads that name no class."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def balanced(self, count: int) -> Split:
        """The first images of every class, `count` in all; classes differ by one image at most.

        A class with fewer images gives all it has. Asking for as many images as there are, or more, gives all.
        Without classes, the images are evenly spaced over the split.
        """
        if count < 1:
            raise ValueError(f"a split needs at least one image, got count={count}")
        if count >= len(self):
            return self
        if self.labels.is_floating_point():
            chosen = _evenly_spaced(len(self), count)
            return Split(self.images[chosen], self.labels[chosen])
        classes = self.labels.unique()
        share, extra = divmod(count, len(classes))
        rows = [
            (self.labels == label).nonzero()[: share + (position < extra), 0] for position, label in enumerate(classes)
        ]
        chosen = torch.cat(rows)
        return Split(self.images[chosen], self.labels[chosen])


@dataclass(frozen=True)
class Augmentation:
    """Random crop after padding with `pad` pixels on each side, and a horizontal flip of half of the images."""

    pad: int = 4
    flip: bool = True
    fill: float = field(default=0.0, repr=False)  # in the fingerprint only where it is not 0
    """What is padded with, in the images' own numbers: 0 is black for uint8, and the mean for normalised images."""

    def __call__(
        self, images: torch.Tensor, generator: torch.Generator, flipped: torch.Tensor | None = None
    ) -> torch.Tensor:
        """[B, C, H, W] -> the same shape and type, in channels_last memory. Padding comes before normalisation.

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
        padded = F.pad(images, (self.pad,) * 4, value=self.fill)
        image = torch.arange(batch, device=device)[:, None, None]
        return padded.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@dataclass(frozen=True)
class DataSplits:
    """Four disjoint splits (calibration is a part of train), and how images become network input."""

    name: str
    classes: tuple[str, ...]
    """Empty where labels are floating-point targets: several labels at once, or a regression."""
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
    def fingerprint(self) -> str:
        """A fingerprint of images, labels, splits and normalisation: what a trained network depends on."""
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
        """[B, C, H, W] -> float32 (images - mean) / std, in channels_last memory; uint8 is divided by 255 first."""
        mean = torch.tensor(self.mean, device=images.device).view(1, -1, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(1, -1, 1, 1)
        scaled = images.to(memory_format=torch.channels_last).float()
        return ((scaled if images.is_floating_point() else scaled / 255) - mean) / std

    def augmented(
        self, images: torch.Tensor, generator: torch.Generator, flipped: torch.Tensor | None = None
    ) -> torch.Tensor:
        """[B, C, H, W] -> the network input of training: augmented, then normalised."""
        return self.normalise(self.augmentation(images, generator, flipped))

    def with_normalisation(self, mean: Sequence[float], std: Sequence[float]) -> DataSplits:
        """The same splits for a network trained with another normalisation."""
        mean, std = _checked_normalisation(self.image_shape[0], mean, std)
        return replace(self, mean=mean, std=std)


def check_data(data: DataSplits) -> None:
    """Raises TypeError where images, a name or a folder are given in place of the splits that are made of them."""
    made = "prune_env.data has load (names, folders), from_tensors and from_datasets, which make them"
    expect(data, DataSplits, "data must be DataSplits", made)


def as_splits(data: DataSplits | str | Path) -> DataSplits:
    """Itself, or what `load` makes of a name or a folder. Raises TypeError for anything else."""
    splits = load(data) if isinstance(data, (str, os.PathLike)) else data
    check_data(splits)
    return splits


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
    return from_folder(source, cache=cache)


def from_folder(path: str | Path, *, augmentation: Augmentation | None = None, cache: bool = True) -> DataSplits:
    """The four splits of an image folder PATH/{train,test}/<class>/* of images of one size; see `load`."""
    return split(sources.folder(Path(path), cache), augmentation=augmentation)


def from_tensors(
    train_images: torch.Tensor,
    train_labels: torch.Tensor,
    test_images: torch.Tensor,
    test_labels: torch.Tensor,
    *,
    reward: tuple[torch.Tensor, torch.Tensor] | None = None,
    calibration: tuple[torch.Tensor, torch.Tensor] | None = None,
    classes: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    augmentation: Augmentation | None = None,
    name: str = "tensors",
) -> DataSplits:
    """The four splits of one's own images [N, C, H, W] and labels.

    images       uint8, normalised by the statistics of the train split or by `mean` and `std` (of images scaled to
                 [0, 1]); or floating point, taken as the network's input as it is unless `mean` and `std` are given
    labels       class numbers [N] from 0 without gaps; or floating-point targets [N] or [N, K] for several labels at
                 once or a regression, which need a metric and a loss (see `FilterPruneEnv`)
    reward       images and labels that the search sees; by default the last tenth of each class of train, or of all of
                 train where there are no classes, is held out for it
    calibration  by default a twentieth of train, which it shares: the first ones of each class, 20 at least, or evenly
                 spaced ones, 200 at least, where there are no classes
    augmentation of training and recalibration; default `Augmentation()` for uint8 and none for floating point

    Raises DataError that names split, index and what was expected.
    """
    given = {"train": (train_images, train_labels), "test": (test_images, test_labels)}
    return _from_parts(given, reward, calibration, classes, mean, std, augmentation, name)


def from_datasets(
    train: Any,
    test: Any,
    *,
    reward: Any = None,
    calibration: Any = None,
    classes: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    augmentation: Augmentation | None = None,
    name: str | None = None,
) -> DataSplits:
    """The four splits of one's own torch Datasets of (image, label) pairs, or DataLoaders over them.

    An image is a tensor [C, H, W], uint8 or floating point, or a PIL image, which becomes uint8; all have one size. For
    labels and settings see `from_tensors`; class names are those of `train.classes` where they fit.

    Every item is read once and kept in memory: what random transforms gave then stays, so leave them out and give an
    `augmentation`. Of a DataLoader the data set is read, in its order and past the loader's collate_fn, or what a
    SubsetRandomSampler chooses from it; a loader over an iterable data set is iterated.
    Raises DataError that names split, index and what was expected.
    """
    found = own_data.class_names(train)
    for part, other in (("test", test), ("reward", reward), ("calibration", calibration)):
        names = own_data.class_names(other)
        if found is not None and names is not None and names != found:
            raise DataError(
                f"the {part} data have classes {names}, the train data {found}: label numbers would mean different "
                "things; give all parts the same classes in the same order"
            )
    given = {"train": own_data.read(train, "train"), "test": own_data.read(test, "test")}
    reward = None if reward is None else own_data.read(reward, "reward")
    calibration = None if calibration is None else own_data.read(calibration, "calibration")
    labels = given["train"][1]
    if classes is None and found and not labels.is_floating_point() and len(found) == len(labels.unique()):
        classes = found
    return _from_parts(
        given, reward, calibration, classes, mean, std, augmentation, name or type(train).__name__.lower()
    )


def split(
    source: Source,
    reward_images: int | None = None,
    calibration_images: int | None = None,
    augmentation: Augmentation | None = None,
    *,
    reward: Split | None = None,
    calibration: Split | None = None,
    normalisation: tuple[Sequence[float], Sequence[float]] | None = None,
) -> DataSplits:
    """Cuts a source into the four splits.

    reward_images       the last ones of each class of the train set; default a tenth (500 for CIFAR-10)
    calibration_images  the first ones of each class; default a twentieth of the class, 20 at least
    reward, calibration given ones, in place of those cut from the train set
    normalisation       mean and std; default those of the training split
    A source without classes is cut like one class, but its calibration images are evenly spaced, 200 at least.
    """
    labels = source.train_labels
    held = torch.zeros(len(labels), dtype=torch.bool)
    shared = torch.zeros(len(labels), dtype=torch.bool)
    parts = [
        (f"class {name!r} of {source.name!r}", (labels == label).nonzero()[:, 0])
        for label, name in enumerate(source.classes)
    ]
    for title, rows in parts or [(f"data {source.name!r}", torch.arange(len(labels)))]:
        held_out = 0 if reward is not None else reward_images or max(1, len(rows) // 10)
        if len(rows) - held_out < 1:
            raise DataError(
                f"{title} has {len(rows)} training images; at least {held_out + 1} are "
                f"needed, of which {held_out} are held out for the reward"
            )
        kept = rows[: len(rows) - held_out]
        held[rows[len(kept) :]] = True
        count = min(len(kept), calibration_images or max(20 if parts else 200, len(kept) // 20))
        shared[kept[:count] if parts else kept[_evenly_spaced(len(kept), count)]] = True
    train = source.train_images[~held]
    mean, std = _checked_normalisation(train.shape[1], *normalisation) if normalisation else _statistics(train)
    return DataSplits(
        source.name,
        source.classes,
        Split(train, labels[~held]),
        calibration or Split(source.train_images[shared], labels[shared]),
        reward or Split(source.train_images[held], labels[held]),
        Split(source.test_images, source.test_labels),
        mean,
        std,
        augmentation or Augmentation(),
    )


def _from_parts(
    given: dict[str, Any],
    reward: Any,
    calibration: Any,
    classes: Sequence[str] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    augmentation: Augmentation | None,
    name: str,
) -> DataSplits:
    given = given | {"reward": reward, "calibration": calibration}
    parts = {part: own_data.checked(pair, part) for part, pair in given.items() if pair is not None}
    names = own_data.check_together(parts, classes)
    if names:
        parts = {part: by_class(*pair) for part, pair in parts.items()}
    if (mean is None) != (std is None):
        raise DataError(f"mean and std belong together; got mean={mean}, std={std}")
    normalisation = None if mean is None or std is None else (mean, std)
    images = parts["train"][0]
    if images.is_floating_point():
        channels = images.shape[1]
        normalisation = normalisation or ((0.0,) * channels, (1.0,) * channels)
        augmentation = augmentation or Augmentation(pad=0, flip=False)
    return split(
        Source(name, names, *parts["train"], *parts["test"]),
        augmentation=augmentation,
        reward=Split(*parts["reward"]) if "reward" in parts else None,
        calibration=Split(*parts["calibration"]) if "calibration" in parts else None,
        normalisation=normalisation,
    )


def _evenly_spaced(length: int, count: int) -> torch.Tensor:
    """`count` different rows out of `length`, ascending: int64 [count]."""
    return torch.arange(count) * length // count


def _checked_normalisation(
    channels: int, mean: Sequence[float], std: Sequence[float]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    means, deviations = tuple(map(float, mean)), tuple(map(float, std))
    usable = all(map(math.isfinite, means)) and all(0 < value < math.inf for value in deviations)
    if len(means) != channels or len(deviations) != channels or not usable:
        raise DataError(
            f"normalisation needs {channels} finite means and {channels} positive standard deviations, one per "
            f"channel; got mean={means}, std={deviations}"
        )
    return means, deviations


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
