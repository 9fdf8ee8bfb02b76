"""Splits whose images are read when they are used, by worker processes that read ahead.

A batch depends on its rows and a seed only: not on the number of workers, nor on what was read before.

Letters: N images, B images in a batch, C channels, H and W pixels.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from ..common.device import processors
from ..common.settings import Count, Settings, Whole
from .errors import DataError
from .splits import Split

Result = TypeVar("Result")
FEW_IMAGES = 256
"""Up to this many images are read in the process itself: workers would take longer to start."""


@dataclass(frozen=True)
class Reading(Settings):
    """How the images of a folder or Dataset are read.

    Raises:
        ValueError: A field has a value that is not allowed; the message names the field.
    """

    stream: bool | None = None
    """Read images when they are used, instead of keeping them in memory; None: if they need more than `memory`."""
    memory: Whole = 4096
    """Size of all images, in MiB, above which they are streamed."""
    workers: Whole | None = None
    """Processes that read; 0 reads in the process itself, None is one less than the processors, 8 at most."""
    prefetch: Count = 2
    """Batches that each worker reads ahead."""
    pin_memory: bool = False
    """Whether to copy batches into pinned memory, from which they move to a GPU faster."""

    def streams(self, split_bytes: int) -> bool:
        """Return whether images of this size are streamed."""
        return split_bytes > self.memory << 20 if self.stream is None else self.stream


class Items(Protocol):
    """Images that are read one by one: the files of a folder, or the items of a Dataset."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of every image, (C, H, W)."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of the images: uint8 or float32."""

    def read(self, row: int, seed: int) -> torch.Tensor:
        """Return one image [C, H, W], which depends on the row and the seed only.

        Raises:
            DataError: It cannot be read, or has another shape or type; the message names it.
        """

    def describe(self, digest: hashlib.blake2b, rows: torch.Tensor) -> None:
        """Add to a digest what identifies the images of some rows."""


class MaskedItems(Items, Protocol):
    """Images that are read one by one, each with its mask."""

    def read_pair(self, row: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return one image [C, H, W] and its mask uint8 [H, W], which depend on the row and the seed only.

        Raises:
            DataError: They cannot be read, or have another shape or type; the message names them.
        """


class _Streamed(Split):
    """What splits have in common whose images are read when they are used."""

    items: Items
    rows: torch.Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image, (C, H, W)."""
        return self.items.shape

    @property
    def dtype(self) -> torch.dtype:
        """Type of the images."""
        return self.items.dtype

    @property
    def images(self) -> torch.Tensor:  # type: ignore[override]
        """All images as one tensor [N, C, H, W], read again each time."""
        return self.in_memory().images

    def batch(self, rows: torch.Tensor, seed: int = 0) -> torch.Tensor:
        """Return the images [B, C, H, W] of some rows."""
        return _ImagesOf(self.items, seed)(self.rows[rows])


@dataclass(frozen=True, eq=False)
class StreamedSplit(_Streamed):
    """A split whose images are read when they are used."""

    items: Items
    rows: torch.Tensor
    """Rows of the items that belong to the split, int64 [N]."""
    labels: torch.Tensor
    """Class numbers int64 [N], or floating-point targets float32 [N, ...]."""
    reading: Reading = Reading()

    @property
    def nbytes(self) -> int:
        """Size of all images in memory."""
        channels, height, width = self.shape
        return len(self) * channels * height * width * self.dtype.itemsize

    def read(self, order: Sequence[torch.Tensor], seed: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield images and labels of batches, which workers read ahead."""
        wanted = [self.rows[rows] for rows in order]
        batches = read_ahead(_ImagesOf(self.items, seed), wanted, self.reading)
        for rows, images in zip(order, batches, strict=True):
            yield images, self.labels[rows]

    def select(self, rows: torch.Tensor) -> StreamedSplit:
        """Return the split of some rows, int64 [B]."""
        return StreamedSplit(self.items, self.rows[rows], self.labels[rows], self.reading)

    def describe(self, digest: hashlib.blake2b) -> None:
        """Add to a digest what identifies images and labels."""
        digest.update(f"streamed {self.labels.dtype} {tuple(self.labels.shape)}".encode())
        self.items.describe(digest, self.rows)
        digest.update(self.labels.contiguous().numpy().data)


@dataclass(frozen=True, eq=False)
class StreamedMasks(_Streamed):
    """A split whose images and masks are read together when they are used, so that random transforms move both."""

    items: MaskedItems
    rows: torch.Tensor
    """Rows of the items that belong to the split, int64 [N]."""
    reading: Reading = Reading()

    has_masks = True

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labels(self) -> torch.Tensor:  # type: ignore[override]
        """All masks as one tensor uint8 [N, H, W], read again each time."""
        return torch.cat([masks for _, masks in self.batches()])

    def read(self, order: Sequence[torch.Tensor], seed: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield images and masks of batches, which workers read ahead."""
        yield from read_ahead(_PairsOf(self.items, seed), [self.rows[rows] for rows in order], self.reading)

    def select(self, rows: torch.Tensor) -> StreamedMasks:
        """Return the split of some rows, int64 [B]."""
        return StreamedMasks(self.items, self.rows[rows], self.reading)

    def describe(self, digest: hashlib.blake2b) -> None:
        """Add to a digest what identifies images and masks."""
        digest.update(b"streamed masks")
        self.items.describe(digest, self.rows)


def read_ahead(
    function: Callable[[torch.Tensor], Result], batches: Sequence[torch.Tensor], reading: Reading
) -> Iterator[Result]:
    """Yield the results of a function for batches of rows, in their order; worker processes compute them ahead.

    Raises:
        DataError: The function raised one, or a worker process died.
    """
    workers = _workers(batches, reading)
    loader: DataLoader[Any] = DataLoader(
        _Batches(function, batches),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=reading.prefetch if workers else None,
        pin_memory=reading.pin_memory and torch.cuda.is_available(),
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,  # others start for seconds
        generator=torch.Generator(),  # otherwise it draws from the global random state
    )
    results = iter(loader)
    try:
        while (result := next(results, None)) is not None:
            if isinstance(result, DataError):
                raise result
            yield result
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):  # that it was killed
            raise
        raise DataError(
            f"a worker process that reads images died: {error}. It may lack memory, or shared memory (/dev/shm): "
            "try Reading(workers=0), or on the command line --readers 0"
        ) from error
    finally:
        del results  # ends the workers, also where the traceback of an error lives on


def _workers(batches: Sequence[torch.Tensor], reading: Reading) -> int:
    """Return the number of worker processes that pay."""
    if multiprocessing.current_process().daemon:  # it must not have children
        return 0
    if reading.workers is not None:
        return min(reading.workers, len(batches))
    if sum(map(len, batches)) <= FEW_IMAGES:
        return 0
    return min(max(1, processors() - 1), 8, len(batches))


class _Batches(Dataset[Any]):
    """The results of a function for batches of rows; a `DataError` is returned, so that its text stays as it is."""

    def __init__(self, function: Callable[[torch.Tensor], Any], batches: Sequence[torch.Tensor]) -> None:
        self._function, self._batches = function, batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: int) -> Any:
        try:
            return self._function(self._batches[number])
        except DataError as error:
            return DataError(str(error))  # without the cause, which may not be picklable


@dataclass(frozen=True)
class _ImagesOf:
    """Reads the images [B, C, H, W] of some rows."""

    items: Items
    seed: int

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        images = torch.empty((len(rows), *self.items.shape), dtype=self.items.dtype)
        for position, row in enumerate(rows.tolist()):
            images[position] = self.items.read(row, self.seed)
        return images


@dataclass(frozen=True)
class _PairsOf:
    """Reads the images [B, C, H, W] and the masks [B, H, W] of some rows."""

    items: MaskedItems
    seed: int

    def __call__(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pairs = [self.items.read_pair(row, self.seed) for row in rows.tolist()]
        images, masks = zip(*pairs, strict=True)
        return torch.stack(images), torch.stack(masks)
