"""Make the four splits of a data set: from a name, a folder, tensors, or torch Datasets.

Letters: N images, C channels, H and W pixels, K targets per image.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..common.expect import expect, expect_fields
from . import datasets, sources, user_data
from .augmentation import Augmentation
from .division import assemble, divide, make_splits
from .errors import DataError
from .folder import Resizing, folder, settled
from .masks import present
from .options import DataOptions, FolderOptions
from .sources import Source
from .splits import DataSplits, Split, TensorSplit
from .streaming import Reading, StreamedMasks

DATA_SETS = ("digits", "cifar10", "cifar100")
"""Names that `load` takes."""
NO_AUGMENTATION = Augmentation(pad=0, flip=False)


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


def load(source: str | Path, *, cache: bool = True, reading: Reading | None = None, **options: Any) -> DataSplits:
    """Load the four splits of a data set.

    Args:
        source: 'digits', 'cifar10', 'cifar100', or an image folder PATH/{train,test}/<class>/*. A name wins over a
            folder of the same name; write './digits' for the folder.
        cache: Whether to keep the decoded images of a folder in the user's cache.
        reading: Whether the images of a folder are streamed, and by how many processes.
        **options: Fields of `DataOptions`: mean, std, augmentation, classes, name; for a folder also those of
            `FolderOptions`: size, resize.

    Raises:
        TypeError: An option is unknown.
        ValueError: An option has a value that is not allowed.
        DataError: Something is missing or broken; the message names the file or class.
    """
    if source == "digits":
        settings = _data_options("load", options)
        # Digits are not mirror images of each other, and 8 pixels leave room for a shift by one.
        shifts = settings.augmentation or Augmentation(pad=1, flip=False)
        return _from_source(sources.digits(), replace(settings, augmentation=shifts), reward=30)
    if source in ("cifar10", "cifar100"):
        settings = _data_options("load", options)
        return _from_source(sources.cifar(str(source)), settings)
    if isinstance(source, str) and not Path(source).expanduser().exists():
        expect_fields(options, "load", FolderOptions)
        raise DataError(
            f"data {source!r} is neither 'digits', 'cifar10' nor 'cifar100', nor a folder PATH/{{train,test}}/<class>/*"
        )
    return from_folder(source, cache=cache, reading=reading, **options)


def from_folder(path: str | Path, *, cache: bool = True, reading: Reading | None = None, **options: Any) -> DataSplits:
    """Load the four splits of an image folder PATH/{train,test}/<class>/*.

    Images are found and read as torchvision's ImageFolder does it, also in subfolders of a class. Two things differ:
    files and folders whose names start with a dot are left out, and grey images have one channel if all are grey.

    The test folder may be called val, valid or validation. If there is also a folder test, val is the reward split.

    Images are kept in memory if they are small enough, and read when they are used otherwise; see `Reading`. Accuracies
    are the same in both cases.

    Args:
        path: The folder.
        cache: Whether to keep the decoded images in the user's cache, if they are kept in memory.
        reading: Whether images are streamed, and by how many processes.
        **options: Fields of `FolderOptions`: mean, std, augmentation, classes, name, size, resize.

    Raises:
        TypeError: An option is unknown.
        ValueError: An option has a value that is not allowed.
        DataError: Something is missing or broken; the message names the file or class.

    Example:
        >>> data = from_folder("photos", size=224, mean="imagenet", std="imagenet")
    """
    expect_fields(options, "from_folder", FolderOptions)
    settings = FolderOptions(**options)
    expect(reading, (Reading, type(None)), "reading must be a Reading", "write Reading(stream=True)")
    source, reward = folder(Path(path), Resizing(settings.size, settings.resize), reading or Reading())
    if settings.classes is not None:
        numbers = sources.class_numbers(source.classes, settings.classes)
        source, reward = _with_numbers(source, numbers, settings.classes), reward and _renumber(reward, numbers)
    parts = settled(divide(source, reward), source.name, cache)
    name = settings.name or source.name
    return assemble(name, source.classes, parts, settings.normalisation, settings.augmentation, settings.usual)


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
    `mean` and `std` are given. Labels are class numbers [N] that count from 0 without gaps; masks [N, H, W] with the
    class number of every pixel, or 255 where it does not count; or floating-point targets [N, ...] for several labels
    at once or a regression, which need a metric and a loss (see `PruningProblem.create`).

    Args:
        train_images: Training images.
        train_labels: Labels of the training images.
        test_images: Test images.
        test_labels: Labels of the test images.
        reward: Images and labels on which the search measures accuracies. By default the last tenth of each training
            class is held out, or the last tenth of all training images where images have no class.
        calibration: Images and labels for BatchNorm statistics. By default a twentieth of the training split, which
            shares it: the first images of each class, at least 20, or evenly spaced images, at least 200, where images
            have no class.
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
    pairs = {part: user_data.convert(pair, part) for part, pair in (parts | extra).items()}
    images = {part: pair[0] for part, pair in pairs.items()}
    return _from_splits(
        {part: TensorSplit(*pair) for part, pair in pairs.items()}, images, settings, settings.name or "tensors"
    )


def from_datasets(
    train: Any,
    test: Any,
    *,
    reward: Any = None,
    calibration: Any = None,
    reading: Reading | None = None,
    **options: Any,
) -> DataSplits:
    """Make the four splits of your own torch Datasets of (image, label) pairs, or of DataLoaders over them.

    An image is a tensor [C, H, W], uint8 or floating point, or a PIL image, which becomes uint8; all have one size. For
    labels and default splits see `from_tensors`; a mask is a tensor or a PIL image.

    Items are kept in memory if they are small enough and not random, and read when they are used otherwise; see
    `Reading`. Random transforms of the training Dataset then act as in your own training, also on masks, and there is
    no `augmentation` by default. They take their random numbers from torch, NumPy's global state or Python's `random`,
    which are seeded for every item and restored. The reward split, which must not be random, is held out of the
    training images with the transforms of `test` where both are torchvision's Datasets; otherwise give `reward`.

    A DataLoader's Dataset is read in its own order and without the loader's collate_fn; a SubsetRandomSampler restricts
    it to a part. A loader over an iterable Dataset is iterated, and its images are kept in memory.

    Args:
        train: Dataset or DataLoader of the training images.
        test: Dataset or DataLoader of the test images.
        reward: Dataset or DataLoader of the images on which the search measures accuracies.
        calibration: Dataset or DataLoader of the images for BatchNorm statistics.
        reading: Whether images are streamed, and by how many processes; by default as the DataLoader `train` reads.
        **options: Fields of `DataOptions`: mean, std, augmentation, classes, name.

    Raises:
        TypeError: An option is unknown.
        ValueError: An option has a value that is not allowed.
        DataError: Images or labels cannot be used; the message names the split and the index.

    Example:
        >>> train = ImageFolder("photos/train", v2.Compose([v2.RandomResizedCrop(224), v2.PILToTensor()]))
        >>> test = ImageFolder("photos/val", v2.Compose([v2.Resize(256), v2.CenterCrop(224), v2.PILToTensor()]))
        >>> data = from_datasets(train, test, mean="imagenet", reading=Reading(workers=4))
    """
    settings = _data_options("from_datasets", options)
    expect(reading, (Reading, type(None)), "reading must be a Reading", "write Reading(stream=True)")
    given = {"train": train, "test": test, "reward": reward, "calibration": calibration}
    given = {part: data for part, data in given.items() if data is not None}
    names = _common_class_names(given)
    reading = reading or datasets.reading_of(train)
    items = datasets.streamed(given, reading)
    if items is None:
        pairs = {part: user_data.convert(user_data.read_dataset(data, part), part) for part, data in given.items()}
        splits: dict[str, Any] = {part: TensorSplit(*pair) for part, pair in pairs.items()}
        samples = {part: split.images for part, split in splits.items()}
    else:
        splits = {part: datasets.open_split(one, reading) for part, one in items.items()}
        samples = {part: one.sample for part, one in items.items()}
        if items["train"].random:
            settings = replace(settings, augmentation=settings.augmentation or NO_AUGMENTATION)
            if reward is None:
                splits["plain"] = replace(
                    splits["train"], items=datasets.without_randomness(items["train"], items["test"])
                )
    if splits["train"].has_masks:
        return _from_splits(splits, samples, settings, settings.name or type(train).__name__.lower())
    labels = splits["train"].labels
    if names and not labels.is_floating_point():
        if settings.classes is not None:
            splits = {
                part: replace(split, labels=_renumbered(split.labels, names, settings.classes))
                for part, split in splits.items()
            }
        elif user_data.fits(labels, len(names)):
            settings = replace(settings, classes=names)
    return _from_splits(splits, samples, settings, settings.name or type(train).__name__.lower())


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
        source = _with_numbers(source, sources.class_numbers(source.classes, options.classes), options.classes)
    return make_splits(
        replace(source, name=options.name or source.name),
        reward=reward,
        normalisation=options.normalisation,
        augmentation=options.augmentation,
    )


def _with_numbers(source: Source, numbers: torch.Tensor, classes: Sequence[str]) -> Source:
    """Return a source whose labels count all classes of a network, of which the source may have only some."""
    train, test = (_renumber(split, numbers) for split in (source.train, source.test))
    return Source(source.name, tuple(classes), train, test)


def _renumber(split: Any, numbers: torch.Tensor) -> Split:
    """Return a split of tensors or streamed images with other class numbers, sorted by them."""
    return sources.sort_by_class(replace(split, labels=numbers[split.labels]))


def _renumbered(labels: torch.Tensor, names: Sequence[str], classes: Sequence[str]) -> torch.Tensor:
    """Return labels of a Dataset's own class names as labels of all classes; unchanged if classes are renamed."""
    if len(names) == len(classes) and not set(names) & set(classes):
        return labels
    if len(outside := ((labels < 0) | (labels >= len(names))).nonzero()):
        raise DataError(f"label {int(labels[int(outside[0])])} is not one of the {len(names)} classes of the Dataset")
    return sources.class_numbers(names, classes)[labels.long()]


def _from_splits(
    splits: dict[str, Split], samples: Mapping[str, torch.Tensor], options: DataOptions, name: str
) -> DataSplits:
    """Check the parts of a user's data, and make the splits.

    Args:
        splits: Keys: train, test, and perhaps reward, calibration, and plain (see `Source`).
        samples: Name of a part -> some of its images, or all.
        options: The options.
        name: Name of the data set.
    """
    values = None
    if any(isinstance(split, StreamedMasks) for split in splits.values()):  # all masks are read once
        read = {part: split for part, split in splits.items() if part in samples}
        pairs = {part: (samples[part], split.select(torch.arange(1)).labels) for part, split in read.items()}
        values = {
            part: present(masks for _, masks in split.batches()) for part, split in read.items() if split.has_masks
        }
    else:
        pairs = {part: (images, splits[part].labels) for part, images in samples.items()}
    classes = user_data.check_together(pairs, options.classes, values)
    for part in ("reward", "test"):
        if isinstance(splits.get(part), TensorSplit):
            sources.warn_of_common_images(samples["train"], samples[part], part)
    normalisation, augmentation, images = options.normalisation, options.augmentation, samples["train"]
    user_data.warn_unusual(*pairs["train"], unit=(options.mean or options.std) in (None, "imagenet", "cifar10"))
    if images.is_floating_point():
        normalisation = normalisation or ("none", "none")
    has_masks = splits["train"].has_masks
    if images.is_floating_point() or not classes or has_masks:  # boxes and key points would not move with the image
        augmentation = augmentation or NO_AUGMENTATION
    size = tuple(pairs["train"][1].shape[1:])
    if has_masks and augmentation and augmentation.moves and size != images.shape[2:]:
        raise DataError(
            f"{augmentation} moves images of {tuple(images.shape[2:])} pixels and masks of {size} in the same "
            "way; make their sizes equal, or leave the augmentation out"
        )
    if classes:
        splits = {part: sources.sort_by_class(split) for part, split in splits.items()}
    return make_splits(
        Source(name, classes, splits["train"], splits["test"], splits.get("plain")),
        reward=splits.get("reward"),
        calibration=splits.get("calibration"),
        normalisation=normalisation,
        augmentation=augmentation,
    )
