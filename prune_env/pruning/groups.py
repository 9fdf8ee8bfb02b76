"""Pruning groups and plans: the types that the whole library uses.

Letters: C filters of a group, m channels that belong to one filter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

Side = Literal["out", "in"]
"""Side of a module with a channel axis. Modules that return the channels that they read have the side 'out' only."""

Plan = tuple[int, ...]
"""Number of filters that each pruning group keeps, in the order of the groups."""


@dataclass(frozen=True, eq=False)
class Member:
    """One side of a module, with the channels that each filter of a group owns there."""

    module: str
    """Path of the module in the network."""
    side: Side
    """'out' or 'in'; BatchNorm, grouped convolutions and similar modules have 'out' only."""
    index: torch.Tensor
    """Channels on that side that are removed with each filter: int64 [C, m], with m > 1 behind a flatten, for instance.
    """


@dataclass(frozen=True, eq=False)
class PruningGroup:
    """Filters of one or more layers that can only be removed together, such as those of a residual stream.

    Layers are convolutions, and linear layers, whose filters are their outputs.
    """

    name: str
    """conv_0, conv_1, ... in forward order of the first layer."""
    layers: tuple[str, ...]
    """Paths of the layers that lose these filters, in forward order."""
    filters: int
    """Number of filters C that can be removed one by one. In a grouped convolution, one filter stands for a whole group
    of the convolution."""
    members: tuple[Member, ...]
    """Every module side that loses channels when a filter is removed."""


@dataclass(frozen=True)
class Protected:
    """Filters that every plan keeps."""

    layers: tuple[str, ...]
    """Paths of the layers that the filters belong to, in forward order."""
    filters: int
    """Number of filters; those of tied layers count once."""
    reason: str
    """Why they stay, as the end of a sentence that starts with 'layers ... are not pruned:'."""
    excluded: bool = False
    """Whether settings keep them, so that no warning is needed."""

    def __str__(self) -> str:
        return f"layers {', '.join(map(named, self.layers))} are not pruned: {self.reason}"


def named(path: str) -> str:
    """Return a path for a message; that of the network itself is empty."""
    return path or "the network"


def check_plan(groups: Sequence[PruningGroup], plan: Plan) -> None:
    """Check that a plan has a whole number from 1 to `filters` for every group.

    Raises:
        TypeError: The plan is a mapping, which has no defined order.
        ValueError: It has the wrong length, or a number that its group cannot keep.
    """
    if isinstance(plan, Mapping):  # pruned.json holds a mapping from layers to filters under the key 'plan'
        raise TypeError(
            f"a plan must be one filter count for each of the {len(groups)} groups, in their order, got "
            f"{type(plan).__name__}; give a tuple, such as env.full_plan"
        )
    if len(plan) != len(groups):
        raise ValueError(f"a plan holds one filter count for each of the {len(groups)} groups, got {len(plan)}")
    for group, kept in zip(groups, plan, strict=True):
        if int(kept) != kept or not 1 <= kept <= group.filters:
            raise ValueError(
                f"group {group.name} ({', '.join(group.layers)}) can keep 1 to {group.filters} filters, "
                f"the plan has {kept}"
            )
