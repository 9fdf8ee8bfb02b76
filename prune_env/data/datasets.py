"""Stream a user's torch Datasets: their items are read, and their transforms run, when images are used.

An item is read with random numbers that depend on its row and a seed only. No global random state changes.

Letters: N images, C channels, H and W pixels, K targets per image.
"""

from __future__ import annotations

import copy
import hashlib
import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, Subset

from ..common.device import seeded
from . import user_data
from .errors import DataError
from .folder import file_stamps
from .masks import convert_masks
from .splits import READ_AT_ONCE, evenly_spaced
from .streaming import Reading, StreamedMasks, StreamedSplit, read_ahead


@dataclass(frozen=True, eq=False)
class DatasetItems:
    """The items of a Dataset that has a length and takes row numbers."""

    data: Any
    part: str
    """The split that they are for, for messages."""
    sample: torch.Tensor
    """Some of the images, evenly spaced [N, C, H, W]; all images have their shape and type."""
    masks: torch.Tensor | None
    """The masks of these images, uint8 [N, H, W]; None if labels are no masks."""
    random: bool
    """Whether items depend on random numbers."""
    files: tuple[np.ndarray, torch.Tensor] | None
    """Paths as bytes [N], and sizes and times int64 [N, 2], of the items' files if they are known."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of every image, (C, H, W)."""
        channels, height, width = self.sample.shape[1:]
        return channels, height, width

    @property
    def dtype(self) -> torch.dtype:
        """Type of the images."""
        return self.sample.dtype

    def read(self, row: int, seed: int) -> torch.Tensor:
        """Return one image [C, H, W] in the type of this package."""
        return self._checked(_read(self.data, row, seed, self.part)[0], row)

    def read_pair(self, row: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return one image [C, H, W] and its mask [H, W] in the types of this package."""
        assert self.masks is not None
        image, mask = _read(self.data, row, seed, self.part)
        where = f"item {row} of the {self.part} data"
        if not _is_mask(mask) or mask.shape[-2:] != self.masks.shape[1:]:
            raise DataError(
                f"{where} has a mask of shape {tuple(mask.shape)} and type {mask.dtype}, item 0 has one of "
                f"{tuple(self.masks.shape[1:])} of integers; resize or convert them to one shape and type first"
            )
        return self._checked(image, row), convert_masks(mask[None], self.part, first=row)[0]

    def _checked(self, image: torch.Tensor, row: int) -> torch.Tensor:
        """Return an image in the type of this package, after a check that it is like the others."""
        where = f"item {row} of the {self.part} data"
        if image.is_floating_point():
            image = image.float()
            user_data.check_finite(image[None], f"the image of {where}, which")
        if (image.shape, image.dtype) != (self.sample.shape[1:], self.sample.dtype):
            raise DataError(
                f"{where} has an image of shape {tuple(image.shape)} and type {image.dtype}, item 0 has one of "
                f"{self.shape} and {self.dtype}; resize or convert them to one shape and type first"
            )
        return image

    def describe(self, digest: hashlib.blake2b, rows: torch.Tensor) -> None:
        """Add to a digest names, sizes and times of files if they are known, and some of the images."""
        if self.files is not None:
            names, stamps = self.files
            digest.update(b"\0".join(names[rows.numpy()].tolist()))
            digest.update(stamps[rows].contiguous().numpy().data)
        digest.update(rows.contiguous().numpy().data)
        digest.update(self.sample.contiguous().numpy().data)
        if self.masks is not None:
            digest.update(self.masks.contiguous().numpy().data)


def reading_of(data: Any) -> Reading:
    """Return how images are read: as a DataLoader reads them, if one is given."""
    if not isinstance(data, DataLoader):
        return Reading()
    return Reading(workers=data.num_workers, prefetch=data.prefetch_factor or 2, pin_memory=data.pin_memory)


def streamed(given: Mapping[str, Any], reading: Reading) -> dict[str, DatasetItems] | None:
    """Return the items of all Datasets if they are to be streamed, and None if they are to be kept in memory.

    They are streamed if `reading` demands it, if they need more memory than it allows, or if items of the training or
    calibration data are random, so that they cannot be kept.

    Args:
        given: Name of a split -> its Dataset or DataLoader.
        reading: How images are read.

    Raises:
        DataError: They are to be streamed and cannot be; the message names the split.
    """
    if reading.stream is False:
        return None
    try:
        items = {part: _open(data, part) for part, data in given.items()}
    except DataError:
        if reading.stream:
            raise
        return None  # reading everything finds all mistakes
    size = sum(len(one.data) * one.sample[0].nbytes for one in items.values())
    is_random = any(one.random for part, one in items.items() if part in ("train", "calibration"))
    if not (is_random or reading.streams(size)):
        return None
    for part in ("test", "reward"):
        if part in items and items[part].random:
            raise DataError(
                f"an item of the {part} data has another image or label when it is read again; leave random transforms "
                "out of the data that accuracies are measured on"
            )
    return items


def open_split(items: DatasetItems, reading: Reading) -> StreamedSplit | StreamedMasks:
    """Return all items as a split.

    Labels are the `targets` of the Dataset where its items have them, and otherwise read, item by item.
    """
    rows = torch.arange(len(items.data))
    if items.masks is not None:
        return StreamedMasks(items, rows, reading)
    labels = _targets(items.data)
    if labels is None or not _are_labels(labels, items):
        batches = read_ahead(_LabelsOf(items), rows.split(READ_AT_ONCE), reading)
        labels = torch.cat(list(batches))
    return StreamedSplit(items, rows, user_data.convert_labels(labels, items.part), reading)


def without_randomness(train: DatasetItems, test: DatasetItems) -> DatasetItems:
    """Return training items with the transforms of the test items, from which the reward split is held out.

    Raises:
        DataError: The Datasets are not torchvision's, so that their transforms are not known.
    """
    plain = _with_transforms(train.data, test.data)
    if plain is None:
        raise DataError(
            "items of the train data are random, so no reward split can be held out of them; give reward=, a Dataset "
            "of images that the network is not trained on, without random transforms"
        )
    return _open(plain, "train")


def _open(data: Any, part: str) -> DatasetItems:
    """Read some items of a Dataset, several times, to find out what they are.

    Raises:
        DataError: An item cannot be used, has a random label that is no mask, or is random in a way that no seed
            determines.
    """
    if isinstance(data, DataLoader) and not isinstance(data.dataset, IterableDataset):
        data = user_data.dataset_of(data, part)
    if isinstance(data, DataLoader | IterableDataset) or not (
        hasattr(data, "__getitem__") and hasattr(data, "__len__")
    ):
        raise DataError(
            f"the {part} data have no length or row numbers and cannot be streamed; give a Dataset with __len__ and "
            "__getitem__"
        )
    if len(data) == 0:
        raise DataError(f"the {part} split is empty; it needs at least one image")
    images: list[torch.Tensor] = []
    labels: list[torch.Tensor] = []
    is_random = False
    for row in evenly_spaced(len(data), min(len(data), user_data.SECOND_LOOKS)).tolist():
        first, again, other = (_read(data, row, seed, part) for seed in (0, 0, 1))
        user_data.check_equal(again, first, f"item {row} of the {part} data")
        if not _same(first[1], other[1]) and not _is_mask(first[1]):
            raise DataError(
                f"item {row} of the {part} data has a random label, but labels are read once; leave out transforms "
                "that change labels at random"
            )
        is_random = is_random or not all(map(_same, first, other))
        images.append(first[0])
        labels.append(first[1])
    masks = None
    for kind, values in (("images", images), ("masks", labels if all(map(_is_mask, labels)) else [])):
        if len({(value.shape, value.dtype) for value in values}) > 1:
            raise DataError(f"{kind} of the {part} data have different shapes or types; resize or convert them first")
        if kind == "masks" and values:
            masks = convert_masks(torch.stack(values), part)
    sample = user_data.convert_images(torch.stack(images), part)
    return DatasetItems(data, part, sample, masks, is_random, _files(data))


def _is_mask(label: torch.Tensor) -> bool:
    """Return whether a label of an item is a mask [H, W], or [1, H, W]."""
    is_integer = not (label.is_floating_point() or label.is_complex() or label.dtype == torch.bool)
    return is_integer and (label.ndim == 2 or (label.ndim == 3 and len(label) == 1))


def _read(data: Any, row: int, seed: int, part: str) -> user_data.Pair:
    """Return image and label of an item in their own types, read with seeded random numbers."""
    with _all_seeded((seed * 1_000_003 + row) % 2**63):
        return user_data.read_item(data, row, part)


@contextmanager
def _all_seeded(seed: int) -> Iterator[None]:
    """Seed the global random states of Python, NumPy and torch inside the block, and restore them afterwards."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    try:
        with seeded("cpu", seed):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


def _same(one: torch.Tensor, two: torch.Tensor) -> bool:
    return one.shape == two.shape and torch.allclose(one.double(), two.double(), 0, 0, equal_nan=True)


@dataclass(frozen=True)
class _LabelsOf:
    """Reads the labels [B, ...] of some rows."""

    items: DatasetItems

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        labels = [_read(self.items.data, row, 0, self.items.part)[1] for row in rows.tolist()]
        for row, one in zip(rows.tolist(), labels, strict=True):
            if (one.shape, one.dtype) != (labels[0].shape, labels[0].dtype):
                raise DataError(
                    f"item {row} of the {self.items.part} data has a label of shape {tuple(one.shape)} and type "
                    f"{one.dtype}, others of {tuple(labels[0].shape)} and {labels[0].dtype}"
                )
        return torch.stack(labels)


def _are_labels(targets: torch.Tensor, items: DatasetItems) -> bool:
    """Return whether `targets` are the labels of the items; a Dataset may change them."""
    if len(targets) != len(items.data):
        return False
    rows = evenly_spaced(len(targets), len(items.sample)).tolist()
    return all(_same(_read(items.data, row, 0, items.part)[1], targets[row]) for row in rows)


def _targets(data: Any) -> torch.Tensor | None:
    """Return the attribute `targets` of a Dataset, as torchvision's have it, also inside a Subset."""
    if isinstance(data, Subset):
        inner = _targets(data.dataset)
        return None if inner is None else inner[torch.as_tensor(list(data.indices), dtype=torch.int64)]
    try:
        return torch.as_tensor(data.targets)
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return None


def _files(data: Any) -> tuple[np.ndarray, torch.Tensor] | None:
    """Return paths, sizes and times of the files in the attribute `samples` of a Dataset, as torchvision's have it."""
    if isinstance(data, Subset):
        inner, rows = _files(data.dataset), np.array(list(data.indices), dtype=np.int64)
        return None if inner is None else (inner[0][rows], inner[1][torch.from_numpy(rows)])
    samples = getattr(data, "samples", None)
    if not isinstance(samples, list) or not all(
        isinstance(one, tuple) and one and isinstance(one[0], str | os.PathLike) for one in samples
    ):
        return None
    names = [os.fsencode(one[0]) for one in samples]
    return (np.array(names), file_stamps(names)) if len(names) == len(data) else None


def _with_transforms(data: Any, other: Any) -> Any:
    """Return a copy of a torchvision Dataset with the transforms of another one, or None for other Datasets."""
    from torchvision.datasets import VisionDataset

    if isinstance(data, Subset):
        inner = _with_transforms(data.dataset, other)
        return None if inner is None else Subset(inner, data.indices)
    while isinstance(other, Subset):
        other = other.dataset
    if not (isinstance(data, VisionDataset) and isinstance(other, VisionDataset)):
        return None
    plain = copy.copy(data)
    plain.transform, plain.target_transform, plain.transforms = (
        other.transform,
        other.target_transform,
        other.transforms,
    )
    return plain
