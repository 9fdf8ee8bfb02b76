"""Data sets and their four disjoint splits: train, calibration, reward and test."""

from __future__ import annotations

from .sources import DataError
from .splits import (
    Augmentation,
    DataSplits,
    Split,
    as_splits,
    check_data,
    from_datasets,
    from_folder,
    from_tensors,
    load,
    split,
)

__all__ = [
    "Augmentation",
    "DataError",
    "DataSplits",
    "Split",
    "as_splits",
    "check_data",
    "from_datasets",
    "from_folder",
    "from_tensors",
    "load",
    "split",
]
