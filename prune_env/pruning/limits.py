"""What must stay of each pruning group, whatever a search wants to remove. Letters: G groups, A rates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from math import lcm
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..common.settings import Count, Fraction, Settings
from .groups import PruningGroup
from .patterns import check_patterns, first_match

IntArray = NDArray[np.int64]
ROUNDING = 1e-9
"""Far above the rounding error of rate * filters and far below a decimal's step: 0.29 of 100 filters are 29."""


def fitting_multiple(filters: int) -> int:
    """Return the largest of 8, 4, 2 and 1 of which at least four multiples fit into a number of filters.

    Processors compute channels in blocks of such a size, so that other counts are slower than the next larger multiple.
    """
    return next(multiple for multiple in (8, 4, 2, 1) if filters >= 4 * multiple or multiple == 1)


@dataclass(frozen=True)
class Limits(Settings):
    """What must stay of each group. Every field is one number for all groups, or one for each, [G].

    Raises:
        ValueError: A field has a value that is not allowed; the message names it.
    """

    min_filters: Count | tuple[Count, ...] = 1
    """Filters that stay; a group with fewer keeps all of them."""
    max_rate: Fraction | tuple[Fraction, ...] = 1.0
    """Largest fraction of the original filters that may be removed in all."""
    round_to: Count | tuple[Count, ...] = 1
    """Kept counts are rounded up to a multiple of this; the full count of a group is always allowed."""

    def __str__(self) -> str:
        return ", ".join(f"{one.name}={_shortest(getattr(self, one.name))}" for one in fields(self))

    def check_groups(self, groups: int) -> None:
        """Check that every field has one number, or one for each group.

        Raises:
            ValueError: A field has another number of entries.
        """
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, tuple) and len(value) != groups:
                raise ValueError(f"{one.name} must be one number, or one for each of {groups} groups; got {value}")

    def fewest(self, full_plan: Sequence[int]) -> IntArray:
        """Return the fewest filters that each group of this plan, which keeps all, may keep: int64 [G]."""
        full = np.asarray(full_plan, np.int64)
        removable = np.floor(np.asarray(self.max_rate) * full + ROUNDING).astype(np.int64)
        return np.minimum(full, self.rounded_up(np.maximum(self.min_filters, full - removable)))

    def steps(self, counts: ArrayLike) -> IntArray:
        """Return the smallest multiples of `round_to` that reach some counts, as factors of it: int64 [..., G]."""
        return -(-np.asarray(counts) // np.asarray(self.round_to))

    def rounded_up(self, counts: ArrayLike) -> IntArray:
        """Return counts [..., G], rounded up to multiples of `round_to`."""
        return self.steps(counts) * self.round_to


@dataclass(frozen=True)
class LimitsConfig(Settings):
    """The limits of a network: one number for all layers, or numbers by patterns on the layers' paths.

    A layer gets the number of the last pattern that matches it, and the default where none does. A group keeps the
    limits of all its layers.

    Raises:
        ValueError: A field has a value that is not allowed; the message names it.

    Example:
        >>> EnvConfig(min_filters={"*": 4, "conv1": 16}, max_rate={"layer4.*": 0.5}, round_to=8)
    """

    min_filters: Count | Mapping[str, Count] = 2
    """Filters that stay in every group, as one number or by layer pattern."""
    max_rate: Fraction | Mapping[str, Fraction] = 1.0
    """Largest fraction of a group's filters that may be removed in all, as one number or by layer pattern."""
    round_to: Count | Mapping[str, Count] | None = None
    """Numbers of kept filters are multiples of this, as one number or by layer pattern. By default of 8, or of 4, 2
    or 1 in groups of fewer than 32, 16 or 8 filters: other counts can make a network slower than the original."""

    def limits(self, groups: Sequence[PruningGroup]) -> Limits:
        """Return the limits of pruning groups.

        Raises:
            ValueError: A pattern matches no layer of a group; the message lists the layers.
        """
        strictest: dict[str, Callable[[set[Any]], Any]] = {"min_filters": max, "max_rate": min, "round_to": _multiple}
        return Limits(**{name: self._of_groups(name, strict, groups) for name, strict in strictest.items()})

    def _of_groups(self, name: str, strictest: Callable[[set[Any]], Any], groups: Sequence[PruningGroup]) -> Any:
        """Return the value of a field for each group, or its one number."""
        value, default = getattr(self, name), getattr(LimitsConfig, name)
        if value is None:
            return tuple(fitting_multiple(group.filters) for group in groups)
        if not isinstance(value, Mapping):
            return value
        check_patterns(name, value, groups)
        last_first = list(reversed(list(value)))

        def number(layer: str, group: PruningGroup) -> Any:
            if (pattern := first_match(layer, last_first)) is not None:
                return value[pattern]
            return fitting_multiple(group.filters) if default is None else default

        numbers = {layer: number(layer, group) for group in groups for layer in group.layers}
        return tuple(strictest({numbers[layer] for layer in group.layers}) for group in groups)


def _multiple(numbers: set[int]) -> int:
    return lcm(*numbers)


def _shortest(value: Any) -> Any:
    """Return the one number of equal ones."""
    return value[0] if isinstance(value, tuple) and len(set(value)) == 1 else value
