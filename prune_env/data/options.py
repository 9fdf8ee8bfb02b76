"""Optional settings of the functions that load data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..common.settings import Count, Settings
from .augmentation import Augmentation
from .normalisation import Name, Normalisation, check_pair


@dataclass(frozen=True)
class DataOptions(Settings):
    """Optional settings of `load`, `from_folder`, `from_tensors` and `from_datasets`, which take them as keywords.

    Raises:
        DataError: Only one of `mean` and `std` is given, and it is not a name.
        ValueError: A field has a value that is not allowed; the message names the field.
    """

    mean: Name | Sequence[float] | None = None
    """Mean per channel, of images scaled to [0, 1] if they are uint8, or a name that stands for mean and std:
    'imagenet', 'cifar10' or 'none' (images as they are). By default that of the training split for uint8 images, and 0
    for floating-point images. Give what your network was trained with."""
    std: Name | Sequence[float] | None = None
    """Standard deviation per channel, or a name; by default that of the training split for uint8 images, and 1 for
    floating-point images."""
    augmentation: Augmentation | None = None
    """For training and recalibration; by default `Augmentation()` for uint8 images with class labels, and none for
    floating-point images, for masks, which move with the images, and for floating-point targets, which do not."""
    classes: Sequence[str] | None = None
    """Names of all classes of the network, in the order of its outputs; there may be classes without images. By default
    those of the folder or Dataset where they fit, and otherwise the numbers. Classes that a folder or Dataset names get
    the label of their name in this list."""
    name: str | None = None
    """Name of the data set; by default that of the folder, 'tensors', or the name of the training Dataset's class."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pair(self.mean, self.std)

    @property
    def normalisation(self) -> Normalisation | None:
        """Mean and standard deviation if they are given."""
        return None if self.mean is None and self.std is None else (self.mean, self.std)


@dataclass(frozen=True)
class FolderOptions(DataOptions):
    """Optional settings of `from_folder`: those of `DataOptions`, and the size of the images.

    Raises:
        ValueError: A field has a value that is not allowed; the message names the field.
    """

    size: Count | None = None
    """Height and width in pixels that all images get: the shorter side is resized to `resize` pixels, and the centre is
    cut out. By default images stay as they are, and must have one size."""
    resize: Count | None = None
    """Pixels of the shorter side before the centre is cut out; by default 8/7 of `size`, such as 256 for 224, and for
    images that have `size` already, no change."""
    usual: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    """Mean and standard deviation to use instead of those of the training split, which are found by reading all
    images, where `mean` is not given and the images have as many channels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resize is not None and (self.size is None or self.resize < self.size):
            raise ValueError(
                f"resize={self.resize} is the shorter side before size={self.size} is cut out; give a size up to it"
            )
