"""Reading images and labels: scikit-learn's digits, torchvision's CIFAR, or a folder of classes.

Every source gives its images class by class, in data set order inside each class, so that one data set gives
the same splits whatever form it comes in.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from ..common.files import cache_dir, replacing

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}

LAYOUT = "expected PATH/{train,test}/<class>/* images"


class DataError(ValueError):
    """The data cannot be used as they are; the message names the file or class and says what was expected."""


@dataclass(frozen=True)
class Source:
    """Images uint8 [N, C, H, W] and labels int64 [N] of both parts, sorted by label, stable inside a class.

    A user's own may be float32 images, and float32 targets [N] or [N, K] in their own order, without classes.
    """

    name: str
    classes: tuple[str, ...]
    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor


def by_class(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sorts by label; images of one class keep their order."""
    order = torch.sort(labels, stable=True).indices
    return images[order].contiguous(), labels[order]


def digits() -> Source:
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels; the last 36 of each class are the test images."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("data 'digits' needs scikit-learn: pip install -e '.[train]' in the clone") from error
    bunch = load_digits()
    grey = torch.from_numpy(np.round(bunch.images * (255 / 16)).astype(np.uint8))[:, None]  # [N, 1, 8, 8]
    images, labels = by_class(grey, torch.from_numpy(bunch.target.astype(np.int64)))
    test = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(10):
        test[(labels == label).nonzero()[-36:, 0]] = True
    names = tuple(str(label) for label in range(10))
    return Source("digits", names, images[~test], labels[~test], images[test], labels[test])


def cifar(name: str) -> Source:
    """CIFAR-10 or CIFAR-100 through torchvision, downloaded into the user's cache unless present."""
    from torchvision import datasets

    make = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    parts: list[torch.Tensor] = []
    classes: tuple[str, ...] = ()
    for train in (True, False):
        try:
            data = make(str(cache_dir() / name), train=train, download=True)
        except (OSError, RuntimeError) as error:  # no network, no space, a broken archive
            raise DataError(
                f"data {name!r} could not be downloaded to {cache_dir() / name}: {error}. Give the path of a "
                "folder PATH/{train,test}/<class>/* instead"
            ) from error
        classes = tuple(data.classes)
        images = torch.from_numpy(data.data).permute(0, 3, 1, 2)
        parts += by_class(images, torch.tensor(data.targets))
    return Source(name, classes, *parts)


def folder(path: Path, cache: bool = True) -> Source:
    """An image folder PATH/{train,test}/<class>/*, decoded once and cached as one file.

    The cache is keyed by the names, sizes and modification times of all files. Raises DataError that names what is
    missing or wrong: a folder, a class, an unreadable file, a file of another size.
    """
    path = path.expanduser().resolve()
    listing = {part: _listing(path, part) for part in ("train", "test")}
    classes = tuple(listing["train"])
    for one, other in (("train", "test"), ("test", "train")):
        if missing := sorted(set(listing[one]) - set(listing[other])):
            raise DataError(f"class {missing[0]!r} has images in {path / one} but none in {path / other}")
    digest = hashlib.blake2b(digest_size=16)
    for part in ("train", "test"):
        for name, files in listing[part].items():
            digest.update(f"{part}/{name}:".encode())
            for entry in files:
                status = entry.stat()
                digest.update(f"{entry.name},{status.st_size},{status.st_mtime_ns};".encode())
    decoded = cache_dir() / "decoded" / f"{path.name}-{digest.hexdigest()}.safetensors"
    tensors = _read_decoded(decoded) if cache else None
    if tensors is None:
        tensors = {}
        for part in ("train", "test"):
            paths = [Path(entry.path) for name in classes for entry in listing[part][name]]
            counts = torch.tensor([len(listing[part][name]) for name in classes])
            tensors[f"{part}_images"] = _decode(paths, f"decoding {part}")
            tensors[f"{part}_labels"] = torch.repeat_interleave(torch.arange(len(classes)), counts)
        _check_equal_shapes(path, tensors)
        if cache:
            with replacing(decoded) as temporary:
                save_file(tensors, temporary)
    return Source(path.name, classes, **tensors)


def parts(path: str | Path) -> tuple[Path, Path]:
    """PATH/train and PATH/test of an image folder, whose images may be of any size. Raises DataError as `folder`."""
    path = Path(path).expanduser().resolve()
    for part in ("train", "test"):
        _listing(path, part)
    return path / "train", path / "test"


def _listing(path: Path, part: str) -> dict[str, list[os.DirEntry[str]]]:
    """Class name -> its image files in name order, classes in name order."""
    if not path.is_dir():
        raise DataError(f"data folder {path} does not exist; {LAYOUT}")
    if not (path / part).is_dir():
        raise DataError(f"data folder {path} has no {part!r} folder; {LAYOUT}")
    listing: dict[str, list[os.DirEntry[str]]] = {}
    for folder_entry in sorted(os.scandir(path / part), key=lambda entry: entry.name):
        if not folder_entry.is_dir() or folder_entry.name.startswith("."):
            continue
        files = [
            file
            for file in os.scandir(folder_entry.path)
            if Path(file.name).suffix.lower() in SUFFIXES and not file.name.startswith(".")
        ]
        if not files:
            raise DataError(
                f"class folder {folder_entry.path} holds no images ({', '.join(sorted(SUFFIXES))}); {LAYOUT}"
            )
        listing[folder_entry.name] = sorted(files, key=lambda file: file.name)
    if len(listing) < 2:
        raise DataError(f"{path / part} holds {len(listing)} class folders; a classifier needs at least two; {LAYOUT}")
    return listing


def _read_decoded(file: Path) -> dict[str, torch.Tensor] | None:
    """The cached tensors, None where there are none or the file is damaged: it is then written anew."""
    if not file.is_file():
        return None
    try:
        with safe_open(file, "pt") as tensors:
            return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError):
        return None


def _decode(files: list[Path], title: str) -> torch.Tensor:
    """Images uint8 [N, C, H, W]; one channel when all files are grey, three otherwise."""
    from PIL import Image

    images: np.ndarray | None = None
    grey = True
    for row, file in enumerate(tqdm(files, title, disable=len(files) < 1000)):
        try:
            with Image.open(file) as image:
                grey = grey and image.mode in ("1", "L")
                pixels = np.asarray(image.convert("RGB"))  # [H, W, 3]
        except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises for broken files
            raise DataError(f"{file} cannot be read as an image: {error}") from error
        if images is None:
            images = np.empty((len(files), *pixels.shape), np.uint8)
        if pixels.shape != images.shape[1:]:
            (height, width), (first_height, first_width) = pixels.shape[:2], images.shape[1:3]
            raise DataError(
                f"{file} is {width}x{height} pixels, {files[0]} is {first_width}x{first_height}; all images must "
                "have one size: resize them first"
            )
        images[row] = pixels
    assert images is not None  # _listing refuses empty classes
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2)
    return (tensor[:, :1] if grey else tensor).contiguous()


def _check_equal_shapes(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    train, test = tensors["train_images"], tensors["test_images"]
    if train.shape[2:] != test.shape[2:]:
        sizes = [f"{images.shape[3]}x{images.shape[2]}" for images in (train, test)]
        raise DataError(f"{path / 'train'} holds {sizes[0]} images and {path / 'test'} {sizes[1]}; sizes must agree")
    if train.shape[1] != test.shape[1]:  # one part grey, the other in colour
        for part in ("train", "test"):
            images = tensors[f"{part}_images"]
            tensors[f"{part}_images"] = images.expand(-1, 3, -1, -1).contiguous()
