"""Read images and labels: scikit-learn's digits, torchvision's CIFAR, or an image folder.

Every source returns its images class by class, and in the order of the data set within each class. One data set
therefore has the same splits in every form.

Letters: N images, C channels, H and W pixels, K targets per image.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from ..common.files import cache_dir
from ..common.tensor_files import DamagedFileError, load_tensors, save_tensors
from ..common.warn import warn

if TYPE_CHECKING:
    from PIL.Image import Image

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}

_LAYOUT = "expected PATH/{train,test}/<class>/* images"


class DataError(ValueError):
    """The data cannot be used; the message names the file, class or image, and what was expected."""


@dataclass(frozen=True)
class Source:
    """Training and test images with their labels, sorted by class; images of one class keep their order."""

    name: str
    """Name of the data set."""
    classes: tuple[str, ...]
    """Names of the classes; empty where labels are floating-point targets, which are not sorted."""
    train_images: torch.Tensor
    """uint8 or float32 [N, C, H, W]."""
    train_labels: torch.Tensor
    """Class numbers int64 [N], or targets float32 [N] or [N, K]."""
    test_images: torch.Tensor
    """uint8 or float32 [N, C, H, W]."""
    test_labels: torch.Tensor
    """Class numbers int64 [N], or targets float32 [N] or [N, K]."""


def sort_by_class(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sort images [N, C, H, W] by their labels [N]; images of one class keep their order."""
    order = torch.sort(labels, stable=True).indices
    return images[order].contiguous(), labels[order]


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


def with_classes(source: Source, classes: Sequence[str]) -> Source:
    """Return a source whose labels count all classes of a network, of which the source may have only some.

    Raises:
        DataError: A class of the source is not in the list, or more than once.
    """
    numbers = class_numbers(source.classes, classes)
    train = sort_by_class(source.train_images, numbers[source.train_labels])
    return Source(source.name, tuple(classes), *train, *sort_by_class(source.test_images, numbers[source.test_labels]))


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


def image_pixels(image: Image, where: str) -> np.ndarray:
    """Return a PIL image as uint8 [H, W] if it is grey, and as [H, W, 3] otherwise.

    Palettes, CMYK and other colours become RGB, transparency is dropped, and the first frame of several counts, as with
    torchvision's ImageFolder.

    Args:
        image: The image.
        where: The name of the image, for the message.

    Raises:
        DataError: Its pixels have more than 8 bits.
    """
    if image.mode.startswith(("I", "F")):
        raise DataError(f"{where} is a PIL image of mode {image.mode!r}; convert it to 8 bits, 'L' or 'RGB', first")
    return np.array(image.convert("L" if image.mode in ("1", "L", "LA", "La") else "RGB"))


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
    images, labels = sort_by_class(grey, torch.from_numpy(bunch.target.astype(np.int64)))
    test = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(10):
        test[(labels == label).nonzero()[-36:, 0]] = True
    names = tuple(str(label) for label in range(10))
    return Source("digits", names, images[~test], labels[~test], images[test], labels[test])


def cifar(name: str) -> Source:
    """Return CIFAR-10 or CIFAR-100 from torchvision, downloaded into the user's cache if it is not there.

    Args:
        name: 'cifar10' or 'cifar100'.

    Raises:
        DataError: The data set cannot be downloaded.
    """
    from torchvision import datasets

    make = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    parts: list[torch.Tensor] = []
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
        images = torch.from_numpy(data.data).permute(0, 3, 1, 2)
        parts += sort_by_class(images, torch.tensor(data.targets))
    return Source(name, classes, *parts)


def folder(path: Path, cache: bool = True) -> Source:
    """Read an image folder PATH/{train,test}/<class>/*, also in subfolders of a class.

    Images of the test folder that equal training images are named in a warning. Decoded images are cached in one file.
    Its key is a hash of the names, sizes and modification times of all files.

    Args:
        path: The folder.
        cache: Whether to use the cache.

    Raises:
        DataError: A folder or class is missing, a file cannot be read, or an image has another size; the message names
            it.
    """
    path = path.expanduser().resolve()
    listing = {part: _listing(path, part) for part in ("train", "test")}
    classes = tuple(listing["train"])
    for one, other in (("train", "test"), ("test", "train")):
        if missing := sorted(set(listing[one]) - set(listing[other])):
            raise DataError(f"class {missing[0]!r} has images in {path / one} but none in {path / other}")
    paths = {part: [file for files in listing[part].values() for file in files] for part in ("train", "test")}
    digest = hashlib.blake2b(b"2", digest_size=16)  # version of `image_pixels`
    for part, files in paths.items():
        for file in files:
            try:
                status = file.stat()
            except OSError as error:
                raise DataError(f"{file} cannot be read: {error.strerror}") from error
            name = os.fsencode(file.relative_to(path / part))
            digest.update(part.encode() + b"/" + name + f",{status.st_size},{status.st_mtime_ns};".encode())
    decoded = cache_dir() / "decoded" / f"{path.name}-{digest.hexdigest()}.safetensors"
    tensors = _read_decoded(decoded) if cache else None
    if tensors is None:
        tensors = {}
        for part in ("train", "test"):
            counts = torch.tensor([len(listing[part][name]) for name in classes])
            tensors[f"{part}_images"] = _decode(paths[part], f"decoding {part}")
            tensors[f"{part}_labels"] = torch.repeat_interleave(torch.arange(len(classes)), counts)
        _unify_shapes(path, tensors)
        if cache:
            try:
                save_tensors(decoded, tensors)
            except OSError as error:
                warn(f"the decoded images are not cached: {error}; set PRUNE_ENV_CACHE to a folder that can be written")
    source = Source(path.name, classes, **tensors)
    warn_of_common_images(
        source.train_images, source.test_images, "test", lambda part, row: str(paths[part][row].relative_to(path))
    )
    return source


def train_and_test_folders(path: str | Path) -> tuple[Path, Path]:
    """Return PATH/train and PATH/test of an image folder, whose images may have any size.

    Raises:
        DataError: A folder or class is missing; the message names it.
    """
    path = Path(path).expanduser().resolve()
    for part in ("train", "test"):
        _listing(path, part)
    return path / "train", path / "test"


def _listing(path: Path, part: str) -> dict[str, list[Path]]:
    """Return the image files of every class; classes and files are in the order of their names."""
    if not path.is_dir():
        raise DataError(f"data {path} {'is not a folder' if path.exists() else 'does not exist'}; {_LAYOUT}")
    if not (path / part).is_dir():
        raise DataError(f"data folder {path} has no {part!r} folder; {_LAYOUT}")
    listing: dict[str, list[Path]] = {}
    for class_folder in sorted((path / part).iterdir()):
        if not class_folder.is_dir() or class_folder.name.startswith("."):
            continue
        files = _image_files(class_folder)
        if not files:
            raise DataError(f"class folder {class_folder} holds no images ({', '.join(sorted(_SUFFIXES))}); {_LAYOUT}")
        listing[class_folder.name] = files
    if len(listing) < 2:
        raise DataError(f"{path / part} holds {len(listing)} class folders; a classifier needs at least two; {_LAYOUT}")
    return listing


def _image_files(class_folder: Path) -> list[Path]:
    """Return the image files in a folder and its subfolders, in the order of torchvision's ImageFolder."""
    found: dict[str, list[Path]] = {}
    visited: dict[str, str] = {}
    for folder, subfolders, names in os.walk(class_folder, onerror=_raise, followlinks=True):
        first = visited.setdefault(os.path.realpath(folder), folder)
        if first != folder:
            raise DataError(f"{folder} leads to {first}, whose images would be read twice; remove the link")
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        images = [name for name in names if Path(name).suffix.lower() in _SUFFIXES and not name.startswith(".")]
        found[folder] = [Path(folder, name) for name in sorted(images)]
    return [file for folder in sorted(found) for file in found[folder]]


def _raise(error: OSError) -> None:
    raise DataError(f"folder {error.filename} cannot be read: {error.strerror}") from error


def _read_decoded(file: Path) -> dict[str, torch.Tensor] | None:
    """Return the cached tensors, or None if the file is missing or damaged, so that it is written again."""
    if not file.is_file():
        return None
    try:
        return load_tensors(file)
    except DamagedFileError:
        return None


def _decode(files: list[Path], title: str) -> torch.Tensor:
    """Return images uint8 [N, C, H, W] with one channel if all files are grey, and with three otherwise."""
    from PIL import Image

    images: np.ndarray | None = None
    grey = True
    for row, file in enumerate(tqdm(files, title, disable=len(files) < 1000)):
        try:
            with Image.open(file) as image:
                pixels = image_pixels(image, str(file))
        except DataError:
            raise
        except Exception as error:  # Pillow raises many types for broken files: OSError, SyntaxError, struct.error, ...
            raise DataError(f"{file} cannot be read as an image: {type(error).__name__}: {error}") from error
        if images is None:
            images = np.empty((len(files), *pixels.shape[:2], 3), np.uint8)
        if pixels.shape[:2] != images.shape[1:3]:
            (height, width), (first_height, first_width) = pixels.shape[:2], images.shape[1:3]
            raise DataError(
                f"{file} is {width}x{height} pixels, {files[0]} is {first_width}x{first_height}; resize the images to "
                "one size first"
            )
        grey = grey and pixels.ndim == 2
        images[row] = pixels[:, :, None] if pixels.ndim == 2 else pixels
    assert images is not None  # _listing raises for empty classes
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2)
    return (tensor[:, :1] if grey else tensor).contiguous()


def _unify_shapes(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Check that both parts have one image size, and convert both to colour if one is grey."""
    train, test = tensors["train_images"], tensors["test_images"]
    if train.shape[2:] != test.shape[2:]:
        sizes = [f"{images.shape[3]}x{images.shape[2]}" for images in (train, test)]
        raise DataError(f"{path / 'train'} holds {sizes[0]} images and {path / 'test'} {sizes[1]}; sizes must agree")
    if train.shape[1] != test.shape[1]:  # one part grey, the other in colour
        for part in ("train", "test"):
            images = tensors[f"{part}_images"]
            tensors[f"{part}_images"] = images.expand(-1, 3, -1, -1).contiguous()
