"""Data sets and their four disjoint splits: train, calibration, reward and test."""

from __future__ import annotations

from .augmentation import Augmentation
from .load import DataOptions, as_splits, check_data, from_datasets, from_folder, from_tensors, load, make_splits
from .sources import DataError
from .splits import DataSplits, Split

__all__ = [
    "Augmentation",
    "DataError",
    "DataOptions",
    "DataSplits",
    "Split",
    "as_splits",
    "check_data",
    "from_datasets",
    "from_folder",
    "from_tensors",
    "load",
    "make_splits",
]
