"""Read and check a user's own images and labels; errors name the split and the index of the image.

Letters: N images, C channels, H and W pixels, K targets per image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
)
from tqdm import tqdm

from ..common.warn import warn
from .errors import DataError
from .masks import FORM, check_masks, convert_masks, present
from .sources import image_pixels

SECOND_LOOKS = 16
"""Items of a Dataset that are read twice, to find random transforms; a random flip stays unnoticed once in 65,536."""
Pair = tuple[torch.Tensor, torch.Tensor]
"""Images uint8 or float32 [N, C, H, W], and labels int64 [N], uint8 [N, H, W] or float32 [N, ...]."""


def read_dataset(data: Any, part: str) -> Pair:
    """Read all images and labels of a Dataset or DataLoader, each item once, and a few twice.

    Args:
        data: The Dataset or DataLoader.
        part: The split that the images are for: train, test, reward or calibration.

    Returns:
        Images [N, C, H, W] and labels [N, ...] in the types of the items.

    Raises:
        DataError: An item cannot be used, or differs when it is read again; the message names its index.
    """
    if isinstance(data, DataLoader) and not isinstance(data.dataset, IterableDataset):
        data = dataset_of(data, part)
    images: list[torch.Tensor] = []
    labels: list[torch.Tensor] = []
    for index, item in enumerate(_items(data, part)):
        where = f"item {index} of the {part} data"
        image, label = _as_pair(item, where)
        for kind, value, others in (("an image", image, images), ("a label", label, labels)):
            if others and (value.shape, value.dtype) != (others[0].shape, others[0].dtype):
                raise DataError(
                    f"{where} has {kind} of {_form(value)}, item 0 has {kind} of {_form(others[0])}; resize or convert "
                    "them to one shape and type first"
                )
        images.append(image)
        labels.append(label)
    if not images:
        raise DataError(f"the {part} split is empty; it needs at least one image")
    if hasattr(data, "__getitem__") and not isinstance(data, IterableDataset):
        for index in range(0, len(images), -(-len(images) // SECOND_LOOKS)):
            check_equal(
                read_item(data, index, part), (images[index], labels[index]), f"item {index} of the {part} data"
            )
    return torch.stack(images), torch.stack(labels)


def fits(labels: torch.Tensor, count: int) -> bool:
    """Return whether labels [N] may be those of `count` classes: all occur, or some are missing between others."""
    present = labels.unique()
    if len(present) == count:
        return True
    # Labels from 0 without gaps may as well be numbers that a target_transform made.
    gaps = int(present[-1]) >= len(present)
    return gaps and int(present[0]) >= 0 and int(present[-1]) < count


def class_names(data: Any) -> tuple[str, ...] | None:
    """Return `classes` of a Dataset, also of one inside a DataLoader or Subset, or None if it has no such names."""
    while isinstance(data, DataLoader | Subset):
        data = data.dataset
    names = getattr(data, "classes", None)
    if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
        return tuple(names)
    return None


def convert(pair: Any, part: str) -> Pair:
    """Convert the images and labels of one split to the types of this package.

    Args:
        pair: Images and labels: tensors, or anything that `torch.as_tensor` converts.
        part: The split: train, test, reward or calibration.

    Raises:
        DataError: They cannot be used; the message names the split and the index.
    """
    images, labels = _pair(pair, f"the {part} split")
    images, labels = _tensor(images, f"{part} images"), _tensor(labels, f"{part} labels")
    images, labels = convert_images(images, part), convert_labels(labels, part)
    if len(labels) != len(images):
        raise DataError(f"the {part} split has {len(images)} images and {len(labels)} labels; give one label per image")
    return images, labels


def check_together(
    parts: Mapping[str, Pair], names: Sequence[str] | None, masks: Mapping[str, torch.Tensor] | None = None
) -> tuple[str, ...]:
    """Check that converted splits fit together.

    Args:
        parts: Name of a split -> its images and labels; the other splits must be like `train`.
        names: Names of the classes; by default their numbers.
        masks: Name of a split -> which values each of its masks has, bool [N, 256], where `parts` has only some of
            them.

    Returns:
        The names of the classes, `()` where labels are floating-point targets.

    Raises:
        DataError: Shapes or types differ, or labels do not count from 0 without gaps.
    """
    images, labels = parts["train"]
    for part, (other_images, other_labels) in parts.items():
        for kind, expected, found in (("images", images, other_images), ("labels", labels, other_labels)):
            if (found.shape[1:], found.dtype) != (expected.shape[1:], expected.dtype):
                raise DataError(
                    f"the {part} {kind} are each of {_form(found[0])}, the train {kind} each of {_form(expected[0])}; "
                    "convert all splits to one shape and type"
                )
    if labels.is_floating_point():
        if names:
            raise DataError(f"{len(names)} classes are named, but labels are floating-point targets; drop the names")
        return ()
    if labels.ndim == 3:
        return check_masks(masks or {part: present([pair[1]]) for part, pair in parts.items()}, names)
    count = _count_classes(labels) if names is None else len(names)
    for part, (_, found) in parts.items():
        if len(unknown := ((found < 0) | (found >= count)).nonzero()):
            index = int(unknown[0])
            source = "the train split, which has" if names is None else f"the {count} class names that are given,"
            raise DataError(
                f"{part} label {int(found[index])} at index {index} is not one of {source} 0 to {count - 1}"
            )
    if len(labels.unique()) < 2:
        raise DataError("the train split has one class; a classifier needs at least two")
    return tuple(names) if names is not None else tuple(map(str, range(count)))


def warn_unusual(images: torch.Tensor, labels: torch.Tensor, *, unit: bool) -> None:
    """Warn of training images and labels that are probably meant otherwise than they are taken.

    Args:
        images: Converted images [N, C, H, W].
        labels: Converted labels [N] or [N, K].
        unit: Whether numbers of the order of 1 are expected in floating-point images: no mean and std are given, or
            those of a data set by name.
    """
    _, channels, height, width = images.shape
    if channels > 4 and height > 4 and (width in (3, 4) or (width == 1 and channels == height)):
        warn(
            f"train images have shape {tuple(images.shape)} and are taken as images of {channels} channels and {width} "
            "columns; if channels come last, convert them with images.permute(0, 3, 1, 2)"
        )
    if unit and images.is_floating_point():
        low, high = images.aminmax()
        if low >= 0 and 20 < high <= 255 and images.mean() > 5:
            warn(
                f"train images are floating-point numbers from {low:g} to {high:g}, which are not scaled to "
                "[0, 1]; convert them to uint8, or give the mean and std in these units that the network was trained "
                "with, or mean='none' if it was trained without scaling"
            )
    is_table = labels.ndim == 2 and labels.shape[1] > 1
    if is_table and bool(((labels == 0) | (labels == 1)).all() and (labels.sum(1) == 1).all()):
        warn(
            f"every row of the train labels {tuple(labels.shape)} has one 1 and otherwise 0, as classes in one-hot "
            "form, but floating-point labels are targets; for classes give their numbers, labels.argmax(1)"
        )


def convert_images(images: torch.Tensor, part: str) -> torch.Tensor:
    """Return images as uint8 or finite float32 [N, C, H, W]."""
    if images.ndim != 4 or 0 in images.shape[1:]:
        hint = "; add the channel axis: images[:, None]" if images.ndim == 3 else ""
        raise DataError(f"{part} images have shape {tuple(images.shape)}; expected [N, C, H, W]{hint}")
    if len(images) == 0:
        raise DataError(f"the {part} split is empty; it needs at least one image")
    if images.is_floating_point():
        images = images.float()
        check_finite(images, f"{part} images")
    elif images.dtype != torch.uint8:
        raise DataError(
            f"{part} images are {images.dtype}; convert them to uint8 from 0 to 255, or to float32 that is normalised "
            "for the network"
        )
    return images


def convert_labels(labels: torch.Tensor, part: str) -> torch.Tensor:
    """Return labels as int64 [N], masks as uint8 [N, H, W], and targets as finite float32 [N, ...]."""
    expected = (
        "class numbers int64 [N], masks of class numbers [N, H, W], or targets float32 [N, ...] for several labels at "
        "once or a regression"
    )
    if labels.is_floating_point():
        labels = labels.float()
        check_finite(labels, f"{part} labels")
    elif labels.dtype == torch.bool or labels.is_complex():
        raise DataError(f"{part} labels are {labels.dtype}; convert them to {expected}")
    elif labels.ndim == 3 or (labels.ndim == 4 and labels.shape[1] == 1):
        return convert_masks(labels, part)
    else:
        labels = labels.long()
    if labels.ndim != 1 and not (labels.ndim > 1 and labels.is_floating_point() and 0 not in labels.shape[1:]):
        raise DataError(f"{part} labels have shape {tuple(labels.shape)} of {labels.dtype}; expected {expected}")
    return labels


def _count_classes(labels: torch.Tensor) -> int:
    """Return the number of classes of training labels, after a check that they count from 0 without gaps."""
    if int(labels.min()) < 0:
        index = int((labels < 0).nonzero()[0])
        raise DataError(f"train label {int(labels[index])} at index {index} is negative; classes count from 0")
    present = labels.unique()
    count = len(present)
    if bool((present != torch.arange(count)).any()):
        gap = int((present != torch.arange(count)).nonzero()[0])
        raise DataError(
            f"train labels must count from 0 without gaps: class {gap} has no train images, class {int(present[-1])} "
            "has; renumber the classes, or name all outputs of the network, in their order, with classes=[...]"
        )
    return count


def _items(data: Any, part: str) -> Iterator[Any]:
    """Yield the items one by one; only the batches of a loader over an iterable Dataset are taken apart."""
    if isinstance(data, DataLoader) and data.batch_size is not None:
        yield from _batch_items(data, part)
    elif isinstance(data, IterableDataset | DataLoader):
        yield from data
    elif hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        for index in tqdm(range(len(data)), f"reading {part}", disable=len(data) < 1000):
            yield _item(data, index, part)
    else:
        raise DataError(f"the {part} data are of type {type(data).__name__}; expected a Dataset or a DataLoader")


def _item(data: Any, index: int, part: str) -> Any:
    try:
        return data[index]
    except Exception as error:  # a user's transforms can raise anything; the index helps to find the cause
        raise DataError(f"item {index} of the {part} data cannot be read: {type(error).__name__}: {error}") from error


def read_item(data: Any, index: int, part: str) -> Pair:
    """Return image [C, H, W] and label of an item of a Dataset, in their own types.

    Raises:
        DataError: The item cannot be read or used; the message names its index.
    """
    return _as_pair(_item(data, index, part), f"item {index} of the {part} data")


def check_equal(again: Pair, first: Pair, where: str) -> None:
    """Check that an item is the same when it is read again.

    Raises:
        DataError: Its image or its label differs; the message names the item.
    """
    for kind, one, two in zip(("image", "label"), first, again, strict=True):
        if one.shape != two.shape or not torch.allclose(one.double(), two.double(), 0, 0, equal_nan=True):
            raise DataError(
                f"{where} has another {kind} when it is read again, but every item is kept as it is read first: leave "
                "random transforms out of the Dataset, and give augmentation=Augmentation(...) for training instead"
            )


def _batch_items(loader: DataLoader[Any], part: str) -> Iterator[Any]:
    """Yield the items of all batches of a loader."""
    for number, batch in enumerate(loader):
        images, labels = _pair(batch, f"batch {number} of the {part} data")
        if len(images) != len(labels):
            raise DataError(
                f"batch {number} of the {part} data has {len(images)} images and {len(labels)} labels; give one label "
                "per image"
            )
        yield from zip(images, labels, strict=True)


def dataset_of(loader: DataLoader[Any], part: str) -> Any:
    """Return a loader's Dataset, or the part that its sampler selects (training and validation may share a Dataset)."""
    sampler = loader.sampler
    if type(loader.batch_sampler) in (BatchSampler, type(None)):
        if isinstance(sampler, SubsetRandomSampler):
            return Subset(loader.dataset, sorted(int(index) for index in sampler.indices))
        if isinstance(sampler, SequentialSampler | RandomSampler):
            return loader.dataset
    raise DataError(
        f"the {part} DataLoader has a custom sampler ({type(sampler).__name__} in "
        f"{type(loader.batch_sampler).__name__}), so it is unclear which images belong to the split; give the Dataset, "
        "or a torch.utils.data.Subset of it"
    )


def _pair(item: Any, where: str) -> tuple[Any, Any]:
    if not isinstance(item, tuple | list) or len(item) != 2:
        found = f"{type(item).__name__} of {len(item)}" if isinstance(item, tuple | list) else type(item).__name__
        raise DataError(f"{where} is a {found}; expected a pair (image, label)")
    return item[0], item[1]


def _as_pair(item: Any, where: str) -> Pair:
    first, second = _pair(item, where)
    return _image(first, where), _label(second, where)


def _image(image: Any, where: str) -> torch.Tensor:
    """Return a tensor [C, H, W]; a PIL image becomes uint8 with one channel if it is grey, and three otherwise."""
    from PIL import Image

    if isinstance(image, Image.Image):
        pixels = torch.from_numpy(image_pixels(image, where))  # [H, W] or [H, W, 3]
        return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
    if not isinstance(image, torch.Tensor):
        raise DataError(f"{where} has a {type(image).__name__} as image; expected a tensor [C, H, W] or a PIL image")
    if image.ndim != 3:
        raise DataError(f"{where} has an image of shape {tuple(image.shape)}; expected [C, H, W]")
    return image.detach().cpu().as_subclass(torch.Tensor)  # torchvision's transforms return a subclass


def _label(label: Any, where: str) -> torch.Tensor:
    """Return a label as a tensor; the pixels of a PIL image are class numbers, and so are its palette's."""
    from PIL import Image

    if isinstance(label, Image.Image):
        if label.mode not in ("1", "L", "P") and not label.mode.startswith("I"):
            raise DataError(f"{where} has a mask of mode {label.mode!r}; {FORM}, as a PIL image of mode 'L' or 'P'")
        label = np.array(label, np.int32 if label.mode.startswith("I") else np.uint8)
    try:
        return torch.as_tensor(label).detach().cpu().as_subclass(torch.Tensor)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{where} has the label {label!r}; expected a class number, a mask, or floating-point targets"
        ) from error


def _tensor(values: Any, what: str) -> torch.Tensor:
    try:
        return torch.as_tensor(values).detach().cpu().as_subclass(torch.Tensor)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{what} of type {type(values).__name__} cannot be made a tensor: {error}") from error


def check_finite(values: torch.Tensor, what: str) -> None:
    finite = values.isfinite()
    if not bool(finite.all()):
        index = int((~finite).flatten(1).any(1).nonzero()[0]) if values.ndim > 1 else int((~finite).nonzero()[0])
        raise DataError(f"{what} contain NaN or infinity, first at index {index}; remove or repair it")


def _form(tensor: torch.Tensor) -> str:
    return f"shape {tuple(tensor.shape)} and type {tensor.dtype}"
