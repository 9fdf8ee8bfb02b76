"""Image folders: find the files, decode them, resize them, and cache the decoded images.

Letters: N images, C channels, H and W pixels.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..common.files import cache_dir
from ..common.tensor_files import DamagedFileError, load_tensors, save_tensors
from ..common.warn import warn
from .errors import DataError
from .sources import GREY, Source, image_pixels, warn_of_common_images
from .splits import Split, TensorSplit
from .streaming import Reading, StreamedSplit

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
_PARTS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
"""Part of a data set -> names of its folder."""
_LAYOUT = "expected PATH/{train,test}/<class>/* images, or val instead of test"
VERSION = b"3"
"""Version of how files become pixels."""


@dataclass(frozen=True)
class Resizing:
    """How images of any size become images of one size: pixel by pixel as torchvision's Resize and CenterCrop do it."""

    size: int | None
    """Height and width in pixels; None if all images have one size, which they keep."""
    resize: int | None
    """Pixels of the shorter side before the centre is cut out; None for 8/7 of `size`, and for no change of images that
    have `size` already."""

    def __call__(self, image: Any) -> Any:
        """Return a PIL image of `size` x `size` pixels."""
        if self.size is None or (self.resize is None and image.size == (self.size, self.size)):
            return image
        shorter, (width, height) = self.resize or self.size * 8 // 7, image.size
        width, height = (int(shorter * side / min(width, height)) for side in (width, height))
        left, top = (round((side - self.size) / 2) for side in (width, height))
        resized = image.resize((width, height), resample=2)  # bilinear
        return resized.crop((left, top, left + self.size, top + self.size))


@dataclass(frozen=True, eq=False)
class Files:
    """The image files of a folder; their order is that of parts, classes and names."""

    root: Path
    names: np.ndarray
    """Path of every file below the root, as bytes [N]."""
    stamps: torch.Tensor
    """Size in bytes and modification time in nanoseconds of every file, int64 [N, 2]."""
    resizing: Resizing

    @property
    def dtype(self) -> torch.dtype:
        """Type of the images."""
        return torch.uint8

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """Shape of every image, (C, H, W): that of the first file, or `size`. One channel if all files are grey."""
        from PIL import Image

        size = self.resizing.size
        height = width = size or 0
        for row in range(len(self.names)):
            try:
                with Image.open(self.path(row)) as image:
                    if row == 0 and not size:
                        width, height = image.size
                    if image.mode not in GREY:
                        return 3, height, width
            except Exception as error:  # Pillow raises many types for broken files
                raise self._unreadable(row, error) from error
        return 1, height, width

    def path(self, row: int) -> Path:
        """Return the path of a file."""
        return self.root / os.fsdecode(bytes(self.names[row]))

    def read(self, row: int, seed: int = 0) -> torch.Tensor:
        """Decode one image, uint8 [C, H, W]."""
        from PIL import Image

        file, shape = self.path(row), self.shape
        try:
            with Image.open(file) as image:
                pixels = image_pixels(image, str(file), self.resizing)  # [H, W] or [H, W, 3]
        except DataError:
            raise
        except Exception as error:  # Pillow raises many types for broken files: OSError, SyntaxError, struct.error, ...
            raise self._unreadable(row, error) from error
        if pixels.shape[:2] != shape[1:]:
            (height, width), (_, first_height, first_width) = pixels.shape[:2], shape
            raise DataError(
                f"{file} is {width}x{height} pixels, {self.path(0)} is {first_width}x{first_height}; give size "
                "(--size on the command line), which all images get"
            )
        # It would have other pixels, or other channels, than those that accuracies and fingerprint belong to.
        if not torch.equal(file_stamps([self.names[row]], self.root)[0], self.stamps[row]):
            raise DataError(f"{file} has changed since the data were loaded; load them again")
        tensor = torch.from_numpy(pixels)
        return tensor.expand(shape) if tensor.ndim == 2 else tensor.permute(2, 0, 1)

    def describe(self, digest: hashlib.blake2b, rows: torch.Tensor) -> None:
        """Add names, sizes and times of some files to a digest."""
        digest.update(VERSION + repr(self.resizing).encode())
        digest.update(b"\0".join(self.names[rows.numpy()].tolist()))
        digest.update(self.stamps[rows].contiguous().numpy().data)

    def _unreadable(self, row: int, error: Exception) -> DataError:
        return DataError(f"{self.path(row)} cannot be read as an image: {type(error).__name__}: {error}")


def folder(path: Path, resizing: Resizing, reading: Reading) -> tuple[Source, Split | None]:
    """Find the images of a folder PATH/{train,val,test}/<class>/*, also in subfolders of a class.

    Args:
        path: The folder.
        resizing: How images get one size.
        reading: How images are read.

    Returns:
        The source, whose images are not read yet, and the reward split if there are both a val and a test folder.

    Raises:
        DataError: A folder or class is missing, or a file cannot be found; the message names it.
    """
    path = path.expanduser().resolve()
    folders = _part_folders(path)
    listing = {part: _listing(one) for part, one in folders.items()}
    classes = tuple(listing["train"])
    for part in listing:
        for one, other in (("train", part), (part, "train")):
            if missing := sorted(set(listing[one]) - set(listing[other])):
                raise DataError(f"class {missing[0]!r} has images in {folders[one]} but none in {folders[other]}")
    names = [
        os.fsencode(name[len(str(path)) + 1 :]) for found in listing.values() for one in found.values() for name in one
    ]
    files = Files(path, np.array(names), file_stamps(names, path), resizing)
    splits: dict[str, Split] = {}
    start = 0
    for part, found in listing.items():
        counts = torch.tensor([len(found[name]) for name in classes])
        rows = torch.arange(start, start + int(counts.sum()))
        start += len(rows)
        labels = torch.repeat_interleave(torch.arange(len(classes)), counts)
        splits[part] = StreamedSplit(files, rows, labels, reading)
    reward = splits.get("val") if "test" in splits else None
    return Source(
        path.name, classes, splits["train"], splits.get("test", splits["val" if "val" in splits else "test"])
    ), reward


def settled(parts: Mapping[str, Split], name: str, cache: bool) -> Mapping[str, Split]:
    """Return the splits of a folder in memory if they are small enough, and as they are otherwise.

    Decoded images are cached in one file. Its key is a hash of the names, sizes and modification times of all files.
    Test images that equal training images are named in a warning.

    Args:
        parts: Name of a split -> the split, streamed.
        name: Name of the data set.
        cache: Whether to use the cache.
    """
    streamed = {part: split for part, split in parts.items() if isinstance(split, StreamedSplit)}
    reading, digest = streamed["train"].reading, hashlib.blake2b(digest_size=16)
    for part, split in sorted(streamed.items()):
        digest.update(part.encode())
        split.describe(digest)
    file = cache_dir() / "decoded" / f"{name}-{digest.hexdigest()}.safetensors"
    usable = cache and file.is_file() and not reading.streams(file.stat().st_size)
    tensors = _read_decoded(file) if usable else None
    if tensors is None:
        if reading.streams(sum(split.nbytes for split in streamed.values())):
            return parts
        tensors = {part: split.in_memory().images for part, split in streamed.items()}
        if cache:
            _write_decoded(file, tensors)
    splits = {part: TensorSplit(tensors[part], split.labels) for part, split in streamed.items()}
    _warn_of_common_images(splits, streamed)
    return splits


def _warn_of_common_images(splits: Mapping[str, TensorSplit], streamed: Mapping[str, StreamedSplit]) -> None:
    def name(part: str, row: int) -> str:
        split = streamed[part]
        assert isinstance(split.items, Files)
        return str(split.items.path(int(split.rows[row])).relative_to(split.items.root))

    warn_of_common_images(splits["train"].images, splits["test"].images, "test", name)


def _part_folders(path: Path) -> dict[str, Path]:
    """Return the folder of every part that is there: train, and at least one of val and test."""
    if not path.is_dir():
        raise DataError(f"data {path} {'is not a folder' if path.exists() else 'does not exist'}; {_LAYOUT}")
    found: dict[str, Path] = {}
    for part, names in _PARTS.items():
        there = [name for name in names if (path / name).is_dir()]
        if len(there) > 1:
            raise DataError(f"data folder {path} has both {there[0]!r} and {there[1]!r}; keep one of them")
        if there:
            found[part] = path / there[0]
    if missing := [part for part in ("train", "test") if part not in found and (part == "train" or "val" not in found)]:
        raise DataError(f"data folder {path} has no {missing[0]!r} folder; {_LAYOUT}")
    return found


def _listing(part: Path) -> dict[str, list[str]]:
    """Return the image files of every class; classes and files are in the order of their names."""
    listing: dict[str, list[str]] = {}
    for class_folder in sorted(part.iterdir()):
        if not class_folder.is_dir() or class_folder.name.startswith("."):
            continue
        files = _image_files(class_folder)
        if not files:
            raise DataError(f"class folder {class_folder} holds no images ({', '.join(sorted(_SUFFIXES))}); {_LAYOUT}")
        listing[class_folder.name] = files
    if len(listing) < 2:
        raise DataError(f"{part} holds {len(listing)} class folders; a classifier needs at least two; {_LAYOUT}")
    return listing


def _image_files(class_folder: Path) -> list[str]:
    """Return the image files in a folder and its subfolders, in the order of torchvision's ImageFolder."""
    found: dict[str, list[str]] = {}
    visited: dict[str, str] = {}
    for folder, subfolders, names in os.walk(class_folder, onerror=_raise, followlinks=True):
        first = visited.setdefault(os.path.realpath(folder), folder)
        if first != folder:
            raise DataError(f"{folder} leads to {first}, whose images would be read twice; remove the link")
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        images = [name for name in names if Path(name).suffix.lower() in _SUFFIXES and not name.startswith(".")]
        found[folder] = [os.path.join(folder, name) for name in sorted(images)]
    return [file for folder in sorted(found) for file in found[folder]]


def _raise(error: OSError) -> None:
    raise DataError(f"folder {error.filename} cannot be read: {error.strerror}") from error


def _read_decoded(file: Path) -> dict[str, torch.Tensor] | None:
    """Return the cached tensors, or None if the file is damaged, so that it is written again."""
    try:
        return load_tensors(file)
    except DamagedFileError:
        return None


def _write_decoded(file: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    try:
        save_tensors(file, tensors)
    except OSError as error:
        warn(f"the decoded images are not cached: {error}; set PRUNE_ENV_CACHE to a folder that can be written")


def file_stamps(names: Sequence[bytes], root: Path = Path()) -> torch.Tensor:
    """Return sizes in bytes and modification times in nanoseconds of files below a folder, int64 [N, 2].

    Raises:
        DataError: A file does not exist or cannot be read; the message names it.
    """
    stamps = np.empty((len(names), 2), np.int64)
    folder = os.fsencode(root)
    for row, name in enumerate(names):
        try:
            status = os.stat(os.path.join(folder, name))
        except OSError as error:
            raise DataError(f"{root / os.fsdecode(name)} cannot be read: {error.strerror}") from error
        stamps[row] = status.st_size, status.st_mtime_ns
    return torch.from_numpy(stamps)
