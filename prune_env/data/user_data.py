"""A user's own images and labels: read from a Dataset or DataLoader, and checked; what does not fit is told by name.

Letters: N images, C channels, H and W pixels, K classes or outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

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

from .sources import DataError

Pair = tuple[torch.Tensor, torch.Tensor]
"""Images uint8 or float32 [N, C, H, W], and labels int64 [N] or float32 [N] or [N, K]."""


def read(data: Any, part: str) -> Pair:
    """All images and labels of a Dataset or DataLoader, each item read once; what is wrong is told by its index.

    part  which split they are for, to be named in errors
    """
    images: list[torch.Tensor] = []
    labels: list[torch.Tensor] = []
    for index, item in enumerate(_items(data, part)):
        where = f"item {index} of the {part} data"
        first, second = _pair(item, where)
        image, label = _image(first, where), _label(second, where)
        for kind, value, others in (("image", image, images), ("label", label, labels)):
            if others and (value.shape, value.dtype) != (others[0].shape, others[0].dtype):
                raise DataError(
                    f"{where} has {_article(kind)} of {_form(value)}, item 0 has {_article(kind)} of "
                    f"{_form(others[0])}; all must have one shape and type: resize or convert them first"
                )
        images.append(image)
        labels.append(label)
    if not images:
        raise DataError(f"the {part} split is empty; it needs at least one image")
    return torch.stack(images), torch.stack(labels)


def class_names(data: Any) -> tuple[str, ...] | None:
    """`classes` of a Dataset, or of the one in a DataLoader or Subset, where it has such names."""
    while isinstance(data, DataLoader | Subset):
        data = data.dataset
    names = getattr(data, "classes", None)
    if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
        return tuple(names)
    return None


def checked(pair: Any, part: str) -> Pair:
    """One split's images and labels as the package keeps them. Raises DataError that names split and index."""
    images, labels = _pair(pair, f"the {part} split")
    images, labels = _tensor(images, f"{part} images"), _tensor(labels, f"{part} labels")
    if images.ndim != 4 or 0 in images.shape[1:]:
        hint = "; add the channel axis: images[:, None]" if images.ndim == 3 else ""
        raise DataError(f"{part} images have shape {tuple(images.shape)}; expected [N, C, H, W]{hint}")
    if len(images) == 0:
        raise DataError(f"the {part} split is empty; it needs at least one image")
    if images.is_floating_point():
        images = images.float()
        _check_finite(images, f"{part} images")
    elif images.dtype != torch.uint8:
        raise DataError(
            f"{part} images are {images.dtype}; convert them to uint8 from 0 to 255, or to float32 that is normalised "
            "as the network takes it"
        )
    if labels.is_floating_point():
        labels = labels.float()
        _check_finite(labels, f"{part} labels")
    elif labels.dtype == torch.bool or labels.is_complex():
        raise DataError(
            f"{part} labels are {labels.dtype}; convert them to int64 class numbers [N], or to float32 targets [N] or "
            "[N, K] for several labels at once or a regression"
        )
    else:
        labels = labels.long()
    if labels.ndim != 1 and not (labels.ndim == 2 and labels.is_floating_point() and labels.shape[1] > 0):
        raise DataError(
            f"{part} labels have shape {tuple(labels.shape)} of {labels.dtype}; expected class numbers [N], or float32 "
            "targets [N] or [N, K] for several labels at once or a regression"
        )
    if len(labels) != len(images):
        raise DataError(f"the {part} split has {len(images)} images and {len(labels)} labels; give one label an image")
    return images, labels


def check_together(parts: Mapping[str, Pair], names: Sequence[str] | None) -> tuple[str, ...]:
    """The class names of checked splits, `()` where labels are targets; `train` says what the others must be like.

    names  of the classes; by default their numbers
    """
    images, labels = parts["train"]
    for part, (other_images, other_labels) in parts.items():
        for kind, mine, its in (("images", images, other_images), ("labels", labels, other_labels)):
            if (its.shape[1:], its.dtype) != (mine.shape[1:], mine.dtype):
                raise DataError(
                    f"one of the {part} {kind} is of {_form(its[0])}, one of the train {kind} of {_form(mine[0])}; all "
                    "splits must agree"
                )
    if labels.is_floating_point():
        if names:
            raise DataError(f"{len(names)} classes are named, but labels are floating-point targets; drop the names")
        return ()
    if int(labels.min()) < 0:
        index = int((labels < 0).nonzero()[0])
        raise DataError(f"train label {int(labels[index])} at index {index} is negative; classes count from 0")
    present = labels.unique()
    count = len(present)
    if bool((present != torch.arange(count)).any()):
        gap = int((present != torch.arange(count)).nonzero()[0])
        raise DataError(
            f"train labels must count from 0 without gaps: class {gap} has no train images, class {int(present[-1])} "
            "has; renumber the classes"
        )
    if count < 2:
        raise DataError("the train split has one class; a classifier needs at least two")
    for part, (_, its) in parts.items():
        if len(strange := ((its < 0) | (its >= count)).nonzero()):
            index = int(strange[0])
            raise DataError(
                f"{part} label {int(its[index])} at index {index} is no class of the train split, which has 0 to "
                f"{count - 1}"
            )
    if names is not None and len(names) != count:
        raise DataError(f"{len(names)} class names are given for {count} classes; give one for each")
    return tuple(names) if names is not None else tuple(map(str, range(count)))


def _items(data: Any, part: str) -> Iterator[Any]:
    """One item after the other; a loader over an iterable data set is the only one whose batches are taken apart."""
    batched = False
    if isinstance(data, DataLoader):
        batched = isinstance(data.dataset, IterableDataset) and data.batch_size is not None
        data = data if isinstance(data.dataset, IterableDataset) else _behind(data, part)
    if batched:
        for number, batch in enumerate(data):
            images, labels = _pair(batch, f"batch {number} of the {part} data")
            if len(images) != len(labels):
                raise DataError(
                    f"batch {number} of the {part} data has {len(images)} images and {len(labels)} labels; give one "
                    "label an image"
                )
            yield from zip(images, labels, strict=True)
    elif isinstance(data, IterableDataset | DataLoader):
        yield from data
    elif hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        for index in tqdm(range(len(data)), f"reading {part}", disable=len(data) < 1000):
            try:
                item = data[index]
            except Exception as error:  # whatever the user's transforms raise; the index is what helps
                raise DataError(
                    f"item {index} of the {part} data cannot be read: {type(error).__name__}: {error}"
                ) from error
            yield item
    else:
        raise DataError(f"the {part} data are a {type(data).__name__}; expected a Dataset or a DataLoader")


def _behind(loader: DataLoader[Any], part: str) -> Any:
    """The data set of a loader, or the part of it that the loader is for: validation often shares one with training."""
    sampler = loader.sampler
    if type(loader.batch_sampler) in (BatchSampler, type(None)):
        if isinstance(sampler, SubsetRandomSampler):
            return Subset(loader.dataset, sorted(int(index) for index in sampler.indices))
        if isinstance(sampler, SequentialSampler | RandomSampler):
            return loader.dataset
    raise DataError(
        f"the {part} DataLoader draws with a sampler of its own ({type(sampler).__name__} in "
        f"{type(loader.batch_sampler).__name__}), so which images are meant is unknown; give the Dataset, or a "
        "torch.utils.data.Subset of it"
    )


def _pair(item: Any, where: str) -> tuple[Any, Any]:
    if not isinstance(item, tuple | list) or len(item) != 2:
        found = f"{type(item).__name__} of {len(item)}" if isinstance(item, tuple | list) else type(item).__name__
        raise DataError(f"{where} is a {found}; expected a pair (image, label)")
    return item[0], item[1]


def _image(image: Any, where: str) -> torch.Tensor:
    """A tensor [C, H, W]; a PIL image becomes uint8, with one channel where it is grey and three otherwise."""
    from PIL import Image

    if isinstance(image, Image.Image):
        if image.mode.startswith(("I", "F")):
            raise DataError(f"{where} is a PIL image of mode {image.mode!r}; convert it to 8 bits, 'L' or 'RGB', first")
        import numpy as np

        grey = image.mode in ("1", "L")
        pixels = torch.from_numpy(np.array(image.convert("L" if grey else "RGB")))  # [H, W] or [H, W, 3]
        return pixels[None] if grey else pixels.permute(2, 0, 1)
    if not isinstance(image, torch.Tensor):
        raise DataError(f"{where} has a {type(image).__name__} as image; expected a tensor [C, H, W] or a PIL image")
    if image.ndim != 3:
        raise DataError(f"{where} has an image of shape {tuple(image.shape)}; expected [C, H, W]")
    return image.detach().cpu().as_subclass(torch.Tensor)  # torchvision's transforms give a subclass


def _label(label: Any, where: str) -> torch.Tensor:
    try:
        return torch.as_tensor(label).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{where} has the label {label!r}; expected a class number, or floating-point targets"
        ) from error


def _tensor(values: Any, what: str) -> torch.Tensor:
    try:
        return torch.as_tensor(values).detach().cpu().as_subclass(torch.Tensor)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{what} are a {type(values).__name__} that is no tensor: {error}") from error


def _check_finite(values: torch.Tensor, what: str) -> None:
    finite = values.isfinite()
    if not bool(finite.all()):
        index = int((~finite).flatten(1).any(1).nonzero()[0]) if values.ndim > 1 else int((~finite).nonzero()[0])
        raise DataError(f"{what} hold NaN or infinity, first at index {index}; remove or repair it")


def _form(tensor: torch.Tensor) -> str:
    return f"shape {tuple(tensor.shape)} and {tensor.dtype}"


def _article(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"
