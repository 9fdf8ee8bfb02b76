"""Divide training images into the splits train, calibration and reward, and normalise."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from .augmentation import Augmentation
from .errors import DataError
from .normalisation import Normalisation, channel_constants, statistics
from .sources import Source
from .splits import DataSplits, Split, evenly_spaced


def make_splits(
    source: Source,
    *,
    reward: Split | int | None = None,
    calibration: Split | int | None = None,
    normalisation: Normalisation | None = None,
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

    Where images have no class of their own (targets, or masks), they are divided like a single class, but the
    calibration images are evenly spaced, and at least 200 by default.

    Raises:
        DataError: A class has too few images, or the normalisation cannot be used.
    """
    return assemble(source.name, source.classes, divide(source, reward, calibration), normalisation, augmentation)


def divide(
    source: Source, reward: Split | int | None = None, calibration: Split | int | None = None
) -> dict[str, Split]:
    """Return the splits by name; see `make_splits`."""
    held_out = torch.zeros(len(source.train), dtype=torch.bool)
    shared = torch.zeros(len(source.train), dtype=torch.bool)
    classes = [
        (f"class {name!r} of {source.name!r}", (source.train.labels == label).nonzero()[:, 0])
        for label, name in enumerate(source.classes if not source.train.has_masks else ())
    ]
    classes = [(title, rows) for title, rows in classes if len(rows)]  # the network may have more classes
    for title, rows in classes or [(f"data {source.name!r}", torch.arange(len(source.train)))]:
        count = reward if isinstance(reward, int) else 0 if reward is not None else max(1, len(rows) // 10)
        if len(rows) <= count:
            raise DataError(
                f"{title} has {len(rows)} training images; at least {count + 1} are needed, of which {count} are held "
                "out for the reward"
            )
        kept = rows[: len(rows) - count]
        held_out[rows[len(kept) :]] = True
        least = 20 if classes else 200
        wanted = calibration if isinstance(calibration, int) else max(least, len(kept) // 20)
        wanted = min(len(kept), wanted)
        shared[kept[:wanted] if classes else kept[evenly_spaced(len(kept), wanted)]] = True
    held_out_rows, shared_rows, kept_rows = (mask.nonzero()[:, 0] for mask in (held_out, shared, ~held_out))
    if reward is None or isinstance(reward, int):
        reward = (source.plain or source.train).select(held_out_rows)
    if calibration is None or isinstance(calibration, int):
        calibration = source.train.select(shared_rows)
    return {"train": source.train.select(kept_rows), "calibration": calibration, "reward": reward, "test": source.test}


def assemble(
    name: str,
    classes: tuple[str, ...],
    parts: Mapping[str, Split],
    normalisation: Normalisation | None,
    augmentation: Augmentation | None,
    usual: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
) -> DataSplits:
    """Return the splits with a normalisation: the given one, the usual one if it fits, or that of the train split."""
    if normalisation is None and usual is not None and len(usual[0]) == parts["train"].shape[0]:
        mean, std = usual
    elif normalisation is None:
        mean, std = statistics(parts["train"])
    else:
        mean, std = channel_constants(parts["train"], *normalisation)
    return DataSplits(
        name=name,
        classes=classes,
        **parts,
        mean=mean,
        std=std,
        augmentation=augmentation or Augmentation(),
        normalisation_given=normalisation is not None,
    )
