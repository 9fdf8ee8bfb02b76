"""Read images and labels: scikit-learn's digits and torchvision's CIFAR; what all sources share.

Every source returns its images class by class, and in the order of the data set within each class. One data set
therefore has the same splits in every form.

Letters: N images, C channels, H and W pixels, K targets per image.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..common.files import cache_dir
from ..common.warn import warn
from .errors import DataError
from .splits import Split, TensorSplit

if TYPE_CHECKING:
    from PIL.Image import Image

GREY = ("1", "L", "LA", "La")
"""Modes of PIL images that become grey; all others become RGB."""


@dataclass(frozen=True, eq=False)
class Source:
    """Training and test images with their labels, sorted by class; images of one class keep their order."""

    name: str
    """Name of the data set."""
    classes: tuple[str, ...]
    """Names of the classes; empty where labels are floating-point targets, which are not sorted."""
    train: Split
    test: Split
    plain: Split | None = None
    """The training images without random transforms, from which images are held out; None for `train`."""


def sort_by_class(split: Split) -> Split:
    """Sort a split by its labels; images of one class keep their order, and those with masks the order of the split."""
    if split.has_masks:
        return split
    return split.select(torch.sort(split.labels, stable=True).indices)


def class_numbers(names: Sequence[str], classes: Sequence[str]) -> torch.Tensor:
    """Return the position of every name in a list of classes, int64 [N].

    Raises:
        DataError: A name is not in the list, or more than once.
    """
    for name in names:
        if list(classes).count(name) != 1:
            found = "more than once" if name in classes else f"not (they are {', '.join(map(repr, classes[:5]))}, ...)"
            raise DataError(f"class {name!r} is {found} among the {len(classes)} given classes; name each class once")
    return torch.tensor([list(classes).index(name) for name in names])


def warn_of_common_images(
    train: torch.Tensor, other: torch.Tensor, part: str, name: Callable[[str, int], str] = "{} image {}".format
) -> None:
    """Warn if a split has images of the training split.

    Args:
        train: Training images [N, C, H, W].
        other: Images of the other split.
        part: Name of the other split.
        name: Returns the name of an image from the names of its split and its index.
    """
    rows = {hash(image.tobytes()): row for row, image in reversed(list(enumerate(train.numpy())))}
    common = [
        (row, same)
        for row, image in enumerate(other.numpy())
        if (same := rows.get(hash(image.tobytes()))) is not None and torch.equal(train[same], other[row])
    ]
    if common:
        pairs = ", ".join(f"{name(part, row)} = {name('train', same)}" for row, same in common[:3])
        more = f" and {len(common) - 3} more" if len(common) > 3 else ""
        warn(
            f"{len(common)} of {len(other)} {part} images equal training images ({pairs}{more}): accuracies on them "
            "are too high; remove them from one of the two"
        )


def image_pixels(image: Image, where: str, resize: Callable[[Image], Image] | None = None) -> np.ndarray:
    """Return a PIL image as uint8 [H, W] if it is grey, and as [H, W, 3] otherwise.

    Palettes, CMYK and other colours become RGB, transparency is dropped, and the first frame of several counts, as with
    torchvision's ImageFolder.

    Args:
        image: The image.
        where: The name of the image, for the message.
        resize: Makes the image of another size, after the conversion.

    Raises:
        DataError: Its channels have more than 8 bits.
    """
    if image.mode.startswith(("I", "F")) or _has_deep_colours(image):
        raise DataError(
            f"{where} has more than 8 bits in a channel (PIL opens it in mode {image.mode!r}); convert it to 8 bits, "
            "'L' or 'RGB', first"
        )
    converted = image.convert("L" if image.mode in GREY else "RGB")
    return np.array(resize(converted) if resize else converted)


def _has_deep_colours(image: Image) -> bool:
    """Whether the file of an image that was opened lazily has colours of 16 bits, of which PIL drops the lower half."""
    for codec, _, _, arguments in getattr(image, "tile", ()):
        values = (arguments,) if isinstance(arguments, str) else tuple(arguments or ())
        if codec.startswith("ppm") and isinstance(values[-1], int) and values[-1] > 255:  # the largest value
            return True
        if values and isinstance(values[0], str) and re.search(r"^(?!BGR).*;16[BLN]?$", values[0]):
            return True
    return False


def digits() -> Source:
    """Return scikit-learn's 1,797 handwritten digits of 8x8 pixels; the last 36 of each class are the test images.

    Raises:
        DataError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("data 'digits' needs scikit-learn: pip install -e '.[train]' in the clone") from error
    bunch = load_digits()
    grey = torch.from_numpy(np.round(bunch.images * (255 / 16)).astype(np.uint8))[:, None]  # [N, 1, 8, 8]
    split = sort_by_class(TensorSplit(grey, torch.from_numpy(bunch.target.astype(np.int64))))
    test = torch.zeros(len(split), dtype=torch.bool)
    for label in range(10):
        test[(split.labels == label).nonzero()[-36:, 0]] = True
    names = tuple(str(label) for label in range(10))
    return Source("digits", names, split.select((~test).nonzero()[:, 0]), split.select(test.nonzero()[:, 0]))


def cifar(name: str) -> Source:
    """Return CIFAR-10 or CIFAR-100 from torchvision, downloaded into the user's cache if it is not there.

    Args:
        name: 'cifar10' or 'cifar100'.

    Raises:
        DataError: The data set cannot be downloaded.
    """
    from torchvision import datasets

    make = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    parts: list[Split] = []
    classes: tuple[str, ...] = ()
    for train in (True, False):
        try:
            data = make(str(cache_dir() / name), train=train, download=True)
        except (OSError, RuntimeError) as error:  # no network, no space, a broken archive
            raise DataError(
                f"data {name!r} could not be downloaded to {cache_dir() / name}: {error}; give the path of a folder "
                "PATH/{train,test}/<class>/* instead"
            ) from error
        classes = tuple(data.classes)
        images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
        parts.append(sort_by_class(TensorSplit(images, torch.tensor(data.targets))))
    return Source(name, classes, *parts)
