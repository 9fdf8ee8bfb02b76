"""Data sets and their four disjoint splits: train, calibration, reward and test."""

from __future__ import annotations

from .augmentation import Augmentation
from .errors import DataError
from .load import (
    DataOptions,
    FolderOptions,
    as_splits,
    check_data,
    from_datasets,
    from_folder,
    from_tensors,
    load,
    make_splits,
)
from .masks import IGNORED
from .splits import DataSplits, Split, TensorSplit
from .streaming import Reading

__all__ = [
    "IGNORED",
    "Augmentation",
    "DataError",
    "DataOptions",
    "DataSplits",
    "FolderOptions",
    "Reading",
    "Split",
    "TensorSplit",
    "as_splits",
    "check_data",
    "from_datasets",
    "from_folder",
    "from_tensors",
    "load",
    "make_splits",
]
