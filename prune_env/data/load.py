"""Make the four splits of a data set: from a name, a folder, tensors, or torch Datasets.

Letters: N images, C channels, H and W pixels, K targets per image.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..common.expect import expect, expect_fields
from ..common.settings import Settings
from . import sources, user_data
from .augmentation import Augmentation
from .normalisation import Name, channel_constants, check_pair
from .sources import DataError, Source
from .splits import DataSplits, Split, evenly_spaced

NO_AUGMENTATION = Augmentation(pad=0, flip=False)


@dataclass(frozen=True)
class DataOptions(Settings):
    """Optional settings of `load`, `from_folder`, `from_tensors` and `from_datasets`, which take them as keywords.

    Raises:
        DataError: Only one of `mean` and `std` is given, and it is not a name.
        ValueError: A field has a value that is not allowed; the message names the field.
    """

    mean: Name | Sequence[float] | None = None
    """Mean per channel, of images scaled to [0, 1] if they are uint8, or a name that stands for mean and std:
    'imagenet', 'cifar10' or 'none' (images as they are). By default that of the training split for uint8 images, and 0
    for floating-point images. Give what your network was trained with."""
    std: Name | Sequence[float] | None = None
    """Standard deviation per channel, or a name; by default that of the training split for uint8 images, and 1 for
    floating-point images."""
    augmentation: Augmentation | None = None
    """For training and recalibration; by default `Augmentation()` for uint8 images with class labels, and none for
    floating-point images, or for floating-point targets, which would not move with the image."""
    classes: Sequence[str] | None = None
    """Names of all classes of the network, in the order of its outputs; there may be classes without images. By default
    those of the folder or Dataset where they fit, and otherwise the numbers. Classes that a folder or Dataset names get
    the label of their name in this list."""
    name: str | None = None
    """Name of the data set; by default that of the folder, 'tensors', or the name of the training Dataset's class."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pair(self.mean, self.std)

    @property
    def normalisation(self) -> tuple[Sequence[float] | str | None, Sequence[float] | str | None] | None:
        """Mean and standard deviation if they are given."""
        return None if self.mean is None and self.std is None else (self.mean, self.std)


def check_data(data: DataSplits) -> None:
    """Check that the argument is a `DataSplits`, not a name, a folder or a tensor.

    Raises:
        TypeError: It is something else.
    """
    remedy = "make one with prune_env.data.load (names, folders), from_tensors or from_datasets"
    expect(data, DataSplits, "data must be DataSplits", remedy)


def as_splits(data: DataSplits | str | Path) -> DataSplits:
    """Return the splits themselves, or `load` them if a name or a folder is given.

    Raises:
        TypeError: `data` is something else.
        DataError: The data cannot be loaded; see `load`.
    """
    splits = load(data) if isinstance(data, (str, os.PathLike)) else data
    check_data(splits)
    return splits


def load(source: str | Path, *, cache: bool = True, **options: Any) -> DataSplits:
    """Load the four splits of a data set.

    Args:
        source: 'digits', 'cifar10', 'cifar100', or an image folder PATH/{train,test}/<class>/*. A name wins over a
            folder of the same name; write './digits' for the folder.
        cache: Whether to keep the decoded images of a folder in the user's cache.
        **options: Fields of `DataOptions`: mean, std, augmentation, classes, name.

    Raises:
        TypeError: An option is unknown.
        ValueError: An option has a value that is not allowed.
        DataError: Something is missing or broken; the message names the file or class.
    """
    settings = _data_options("load", options)
    if source == "digits":
        # Digits are not mirror images of each other, and 8 pixels leave room for a shift by one.
        shifts = settings.augmentation or Augmentation(pad=1, flip=False)
        return _from_source(sources.digits(), replace(settings, augmentation=shifts), reward=30)
    if source in ("cifar10", "cifar100"):
        return _from_source(sources.cifar(str(source)), settings)
    if isinstance(source, str) and not Path(source).expanduser().exists():
        raise DataError(
            f"data {source!r} is neither 'digits', 'cifar10' nor 'cifar100', nor a folder PATH/{{train,test}}/<class>/*"
        )
    return from_folder(source, cache=cache, **options)


def from_folder(path: str | Path, *, cache: bool = True, **options: Any) -> DataSplits:
    """Load the four splits of an image folder PATH/{train,test}/<class>/* whose images have one size.

    Images are found and read as torchvision's ImageFolder does it, also in subfolders of a class. Two things differ:
    files and folders whose names start with a dot are left out, and grey images have one channel if all are grey.

    Args:
        path: The folder.
        cache: Whether to keep the decoded images in the user's cache.
        **options: Fields of `DataOptions`: mean, std, augmentation, classes, name.

    Raises:
        TypeError: An option is unknown.
        ValueError: An option has a value that is not allowed.
        DataError: Something is missing or broken; the message names the file or class.

    Example:
        >>> data = from_folder("photos", mean="imagenet", std="imagenet")
    """
    settings = _data_options("from_folder", options)
    return _from_source(sources.folder(Path(path), cache), settings)


def from_tensors(
    train_images: torch.Tensor,
    train_labels: torch.Tensor,
    test_images: torch.Tensor,
    test_labels: torch.Tensor,
    *,
    reward: tuple[torch.Tensor, torch.Tensor] | None = None,
    calibration: tuple[torch.Tensor, torch.Tensor] | None = None,
    **options: Any,
) -> DataSplits:
    """Make the four splits of your own images and labels.

    Images [N, C, H, W] are uint8, or floating point: these are used as network input without further scaling, unless
    `mean` and `std` are given. Labels are class numbers [N] that count from 0 without gaps, or floating-point targets
    [N] or [N, K] for several labels at once or a regression; targets need a metric and a loss (see
    `PruningProblem.create`).

    Args:
        train_images: Training images.
        train_labels: Labels of the training images.
        test_images: Test images.
        test_labels: Labels of the test images.
        reward: Images and labels on which the search measures accuracies. By default the last tenth of each training
            class is held out, or the last tenth of all training images where there are no classes.
        calibration: Images and labels for BatchNorm statistics. By default a twentieth of the training split, which
            shares it: the first images of each class, at least 20, or evenly spaced images, at least 200, where there
            are no classes.
        **options: Fields of `DataOptions`: mean, std, augmentation, classes, name.

    Raises:
        TypeError: An option is unknown.
        ValueError: An option has a value that is not allowed.
        DataError: Images or labels cannot be used; the message names the split and the index.

    Example:
        >>> data = from_tensors(images, labels, test_images, test_labels, mean=(0.5,), std=(0.2,))
    """
    settings = _data_options("from_tensors", options)
    parts = {"train": (train_images, train_labels), "test": (test_images, test_labels)}
    extra = {part: pair for part, pair in (("reward", reward), ("calibration", calibration)) if pair is not None}
    return _from_pairs(parts | extra, settings, settings.name or "tensors")


def from_datasets(train: Any, test: Any, *, reward: Any = None, calibration: Any = None, **options: Any) -> DataSplits:
    """Make the four splits of your own torch Datasets of (image, label) pairs, or of DataLoaders over them.

    An image is a tensor [C, H, W], uint8 or floating point, or a PIL image, which becomes uint8; all have one size. For
    labels and default splits see `from_tensors`.

    Every item is read once and kept in memory. The result of a random transform would therefore be fixed, and a
    Dataset with one is refused: leave such transforms out and give an `augmentation`. A DataLoader's Dataset is read
    in its own order and without the loader's collate_fn; a SubsetRandomSampler restricts it to a part. A loader over
    an iterable Dataset is iterated.

    Args:
        train: Dataset or DataLoader of the training images.
        test: Dataset or DataLoader of the test images.
        reward: Dataset or DataLoader of the images on which the search measures accuracies.
        calibration: Dataset or DataLoader of the images for BatchNorm statistics.
        **options: Fields of `DataOptions`: mean, std, augmentation, classes, name.

    Raises:
        TypeError: An option is unknown.
        ValueError: An option has a value that is not allowed.
        DataError: Images or labels cannot be used; the message names the split and the index.
    """
    settings = _data_options("from_datasets", options)
    given = {"train": train, "test": test, "reward": reward, "calibration": calibration}
    given = {part: data for part, data in given.items() if data is not None}
    names = _common_class_names(given)
    pairs = {part: user_data.read_dataset(data, part) for part, data in given.items()}
    labels = pairs["train"][1]
    if names and not labels.is_floating_point() and labels.ndim == 1:
        if settings.classes is not None:
            pairs = {part: (pair[0], _renumbered(pair[1], names, settings.classes)) for part, pair in pairs.items()}
        elif user_data.fits(labels, len(names)):
            settings = replace(settings, classes=names)
    return _from_pairs(pairs, settings, settings.name or type(train).__name__.lower())


def make_splits(
    source: Source,
    *,
    reward: Split | int | None = None,
    calibration: Split | int | None = None,
    normalisation: tuple[Sequence[float] | str | None, Sequence[float] | str | None] | None = None,
    augmentation: Augmentation | None = None,
) -> DataSplits:
    """Divide a source into the four splits.

    Args:
        source: Training and test images.
        reward: A split, or the number of images of each class to hold out: the last ones of the training images. By
            default a tenth of each class.
        calibration: A split, or the number of images of each class: the first ones that are not held out. By default
            a twentieth of each class, at least 20 images.
        normalisation: Mean and standard deviation per channel, or a name; by default those of the training split.
        augmentation: For training and recalibration; `Augmentation()` by default.

    A source without classes is divided like a single class, but its calibration images are evenly spaced, and at least
    200 by default.

    Raises:
        DataError: A class has too few images, or the normalisation cannot be used.
    """
    labels = source.train_labels
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    shared = torch.zeros(len(labels), dtype=torch.bool)
    classes = [
        (f"class {name!r} of {source.name!r}", (labels == label).nonzero()[:, 0])
        for label, name in enumerate(source.classes)
    ]
    classes = [(title, rows) for title, rows in classes if len(rows)]  # the network may have more classes
    for title, rows in classes or [(f"data {source.name!r}", torch.arange(len(labels)))]:
        count = 0 if isinstance(reward, Split) else reward or max(1, len(rows) // 10)
        if len(rows) <= count:
            raise DataError(
                f"{title} has {len(rows)} training images; at least {count + 1} are needed, of which {count} are held "
                "out for the reward"
            )
        kept = rows[: len(rows) - count]
        held_out[rows[len(kept) :]] = True
        least = 20 if classes else 200
        wanted = (not isinstance(calibration, Split) and calibration) or max(least, len(kept) // 20)
        wanted = min(len(kept), wanted)
        shared[kept[:wanted] if classes else kept[evenly_spaced(len(kept), wanted)]] = True
    train = Split(source.train_images[~held_out], labels[~held_out])
    if normalisation is None:
        mean, std = _statistics(train.images)
    else:
        mean, std = channel_constants(train.images, *normalisation)
    return DataSplits(
        name=source.name,
        classes=source.classes,
        train=train,
        calibration=calibration
        if isinstance(calibration, Split)
        else Split(source.train_images[shared], labels[shared]),
        reward=reward if isinstance(reward, Split) else Split(source.train_images[held_out], labels[held_out]),
        test=Split(source.test_images, source.test_labels),
        mean=mean,
        std=std,
        augmentation=augmentation or Augmentation(),
        normalisation_given=normalisation is not None,
    )


def _data_options(function: str, options: Mapping[str, Any]) -> DataOptions:
    expect_fields(options, function, DataOptions)
    return DataOptions(**options)


def _common_class_names(datasets: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the class names of the training data, after a check that all parts with names have the same."""
    expected = user_data.class_names(datasets["train"])
    for part, data in datasets.items():
        names = user_data.class_names(data)
        if expected is not None and names is not None and names != expected:
            raise DataError(
                f"the {part} data have classes {names}, the train data {expected}, so label numbers would mean "
                "different things; give all parts the same classes in the same order"
            )
    return expected


def _from_source(source: Source, options: DataOptions, reward: int | None = None) -> DataSplits:
    """Make the splits of a source that names its classes."""
    if options.classes is not None:
        source = sources.with_classes(source, options.classes)
    return make_splits(
        replace(source, name=options.name or source.name),
        reward=reward,
        normalisation=options.normalisation,
        augmentation=options.augmentation,
    )


def _renumbered(labels: torch.Tensor, names: Sequence[str], classes: Sequence[str]) -> torch.Tensor:
    """Return labels of a Dataset's own class names as labels of all classes; unchanged if classes are renamed."""
    if len(names) == len(classes) and not set(names) & set(classes):
        return labels
    if len(outside := ((labels < 0) | (labels >= len(names))).nonzero()):
        raise DataError(f"label {int(labels[int(outside[0])])} is not one of the {len(names)} classes of the Dataset")
    return sources.class_numbers(names, classes)[labels.long()]


def _from_pairs(given: Mapping[str, Any], options: DataOptions, name: str) -> DataSplits:
    """Check pairs of images and labels, and make the splits. Keys: train, test, and perhaps reward and calibration."""
    pairs = {part: user_data.convert(pair, part) for part, pair in given.items()}
    classes = user_data.check_together(pairs, options.classes)
    for part in ("reward", "test"):
        if part in pairs:
            sources.warn_of_common_images(pairs["train"][0], pairs[part][0], part)
    if classes:
        pairs = {part: sources.sort_by_class(*pair) for part, pair in pairs.items()}
    normalisation, augmentation, images = options.normalisation, options.augmentation, pairs["train"][0]
    user_data.warn_unusual(*pairs["train"], unit=(options.mean or options.std) in (None, "imagenet", "cifar10"))
    if images.is_floating_point():
        normalisation = normalisation or ("none", "none")
    if images.is_floating_point() or not classes:  # boxes, key points and masks would not move with the image
        augmentation = augmentation or NO_AUGMENTATION
    return make_splits(
        Source(name, classes, *pairs["train"], *pairs["test"]),
        reward=Split(*pairs["reward"]) if "reward" in pairs else None,
        calibration=Split(*pairs["calibration"]) if "calibration" in pairs else None,
        normalisation=normalisation,
        augmentation=augmentation,
    )


def _statistics(images: torch.Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel of uint8 images scaled to [0, 1], from exact histograms."""
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
