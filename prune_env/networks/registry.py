"""Networks by name: how to construct, train and normalise each of them.

Example:
    >>> from prune_env.networks import create, list_networks, register_network
    >>> @register_network("tiny", image_size=(8, 8), recipe={"epochs": 5, "lr": 0.1})
    ... class Tiny(nn.Module):
    ...     def __init__(self, num_classes: int, in_channels: int) -> None: ...
    >>> list_networks("t*")
    ['tiny']
    >>> model = create("tiny", num_classes=10, in_channels=1)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Annotated, Any, TypeVar

from torch import nn

from ..common.device import seeded
from ..common.fingerprints import qualified_name
from ..common.settings import Count, Range, Seed, checked

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each image channel."""
Constructor = TypeVar("Constructor", bound=Callable[..., nn.Module])


@dataclass(frozen=True)
class NetworkEntry:
    """Everything the library needs to use a network by its name."""

    name: str
    constructor: Callable[..., nn.Module]
    """Called with (num_classes, in_channels); returns the network with fresh weights."""
    image_size: tuple[int, int] = (32, 32)
    """Height and width in pixels of the images that the network takes."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """Settings of `FitConfig` to train the network with when no weights are given."""
    normalisation: Normalisation | None = None
    """Constants to normalise images with; None for the statistics of the training split."""


ENTRIES: dict[str, NetworkEntry] = {}
"""Name -> entry of every registered network."""


def register_network(
    name: str,
    *,
    image_size: Sequence[int] = (32, 32),
    recipe: Mapping[str, Any] | None = None,
    normalisation: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Callable[[Constructor], Constructor]:
    """Return a decorator that registers a network class, or a function that makes a network.

    Args:
        name: The name for `create`, `make_env` and `save_pruned`.
        image_size: Height and width in pixels of the images that the network takes.
        recipe: Settings of `FitConfig`, used to train the network when no weights are given.
        normalisation: Mean and standard deviation of each image channel, for networks whose published weights need
            them. They apply to images with as many channels; all others use the statistics of their training split.

    Returns:
        A decorator that returns its argument unchanged. The argument is called with (num_classes, in_channels).

    Raises:
        ValueError: The name is empty or belongs to another network, or a setting has a value that is not allowed.
    """
    height, width = image_size
    if not name or min(height, width) < 1:
        raise ValueError(f"a network needs a name and an image size of at least 1x1, got {name!r} and {image_size}")
    constants = None
    if normalisation is not None:
        mean, std = (tuple(float(value) for value in values) for values in normalisation)
        if len(mean) != len(std) or min(std, default=0.0) <= 0:
            raise ValueError(f"normalisation of network {name!r} needs a mean and a positive std for every channel")
        constants = mean, std

    def register(constructor: Constructor) -> Constructor:
        known = ENTRIES.get(name)
        if known is not None and qualified_name(known.constructor) != qualified_name(constructor):
            raise ValueError(f"network {name!r} is already registered; choose another name")
        settings = MappingProxyType(dict(recipe or {}))
        ENTRIES[name] = NetworkEntry(name, constructor, (height, width), settings, constants)
        return constructor

    return register


def list_networks(pattern: str = "*") -> list[str]:
    """Return the names of the registered networks that match a pattern with wildcards, in alphabetical order.

    Example:
        >>> list_networks("resnet*")
        ['resnet20', 'resnet56']
    """
    return sorted(name for name in ENTRIES if fnmatchcase(name, pattern))


def network_entry(name: str) -> NetworkEntry:
    """Return the entry of a registered network.

    Raises:
        ValueError: No network has this name.
    """
    if name not in ENTRIES:
        raise ValueError(f"network {name!r} is not registered; choose one of {', '.join(list_networks())}")
    return ENTRIES[name]


def image_size(name: str) -> tuple[int, int]:
    """Return height and width in pixels of the images that a registered network takes.

    Raises:
        ValueError: No network has this name.
    """
    return network_entry(name).image_size


def create(name: str, num_classes: int = 10, in_channels: int = 3, seed: int = 0) -> nn.Module:
    """Return a registered network with fresh weights.

    Args:
        name: A name in `list_networks()`.
        num_classes: Number of logits K, at least 2.
        in_channels: Channels of the images, at least 1.
        seed: Seed of the weights. The global random state does not change.

    Raises:
        ValueError: No network has this name, or a number is too small.
    """
    entry = network_entry(name)
    num_classes = checked("num_classes", num_classes, Annotated[int, Range(2)])
    in_channels = checked("in_channels", in_channels, Count)
    seed = checked("seed", seed, Seed)
    with seeded("cpu", seed):
        return entry.constructor(num_classes, in_channels)
