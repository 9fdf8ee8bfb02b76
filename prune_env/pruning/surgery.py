"""Make a smaller network from a plan, by selecting entries of tensors.

The original network is never changed. Letters: C filters of a group, m channels that belong to one filter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from .copies import copy_modules, uncompiled
from .errors import PruningError
from .groups import Plan, PruningGroup, Side, check_plan
from .modules import CutModule, refusal, spec_of

SIDES: tuple[Side, Side] = ("out", "in")
Removed = dict[tuple[str, Side], torch.Tensor]
"""(module path, side) -> channels to remove, int64 and ascending."""


def build(
    model: nn.Module, groups: Sequence[PruningGroup], ranking: Mapping[str, torch.Tensor], plan: Plan
) -> nn.Module:
    """Return the pruned network of a plan: new, smaller and independent of the original.

    Every parameter is a leaf with its own storage and the original's `requires_grad`. Modes and device are those of the
    original; forward and backward hooks are not copied.

    Args:
        model: The original network.
        groups: Its pruning groups.
        ranking: Name of a group -> indices of its filters, the most important first, int64 [C].
        plan: How many filters each group keeps.

    Raises:
        ValueError: The plan does not fit the groups, or the groups do not fit the network.

    Example:
        >>> groups = find_groups(model, images)
        >>> ranking = importance.ranking(importance.scores("l1", model, groups))
        >>> small = build(model, groups, ranking, tuple(group.filters // 2 for group in groups))
    """
    return build_from_indices(model, groups, kept_indices(groups, ranking, plan))


def build_from_indices(
    model: nn.Module, groups: Sequence[PruningGroup], keep: Mapping[str, torch.Tensor | Sequence[int]]
) -> nn.Module:
    """Return the pruned network that keeps the given filters, see `build`.

    Args:
        model: The original network.
        groups: Its pruning groups.
        keep: Name of a group -> indices of the filters to keep, ascending.

    Raises:
        ValueError: The indices do not fit the groups, or the groups do not fit the network.
    """
    return cut(model, removed_channels(groups, keep))


def kept_indices(
    groups: Sequence[PruningGroup], ranking: Mapping[str, torch.Tensor], plan: Plan
) -> dict[str, torch.Tensor]:
    """Return the filters that a plan keeps: name of a group -> their indices, int64 and ascending.

    Raises:
        ValueError: The plan does not fit the groups.
    """
    check_plan(groups, plan)
    return {group.name: ranking[group.name][:kept].sort().values for group, kept in zip(groups, plan, strict=True)}


def restrict(
    groups: Sequence[PruningGroup], ranking: Mapping[str, torch.Tensor], plan: Plan
) -> tuple[list[PruningGroup], dict[str, torch.Tensor]]:
    """Return groups and ranking of the pruned network of a plan, in that network's numbering of filters.

    Filters keep their order of importance, so pruning in two steps equals pruning at once.

    Raises:
        ValueError: The plan does not fit the groups.
    """
    keep = kept_indices(groups, ranking, plan)
    removed = removed_channels(groups, keep)
    smaller, order = [], {}
    for group, kept in zip(groups, plan, strict=True):
        stays = keep[group.name]
        members = []
        for member in group.members:
            index = member.index[stays]
            gone = removed.get((member.module, member.side))
            members.append(member if gone is None else replace(member, index=index - torch.searchsorted(gone, index)))
        smaller.append(replace(group, filters=kept, members=tuple(members)))
        order[group.name] = torch.searchsorted(stays, ranking[group.name][:kept])
    return smaller, order


def removed_channels(groups: Sequence[PruningGroup], keep: Mapping[str, torch.Tensor | Sequence[int]]) -> Removed:
    """Return the channels that each module side loses when only some filters are kept.

    Args:
        groups: The pruning groups.
        keep: Name of a group -> indices of the filters to keep, ascending.

    Raises:
        ValueError: A group is missing or unknown, or its indices are not ascending or out of range.
    """
    if unknown := set(keep) - {group.name for group in groups}:
        raise ValueError(f"kept filters are given for {', '.join(sorted(unknown))}, but no group has such a name")
    # NumPy, because a plan uses hundreds of short index arrays, and torch takes several times as long for each.
    parts: dict[tuple[str, Side], list[np.ndarray]] = {}
    for group in groups:
        if group.name not in keep:
            raise ValueError(f"kept filters of group {group.name} ({', '.join(group.layers)}) are missing")
        stays = np.asarray(keep[group.name], dtype=np.int64)
        ascending = stays.ndim == 1 and bool((stays[1:] > stays[:-1]).all())
        if not ascending or len(stays) == 0 or stays[0] < 0 or stays[-1] >= group.filters:
            raise ValueError(
                f"kept filters of group {group.name} must be ascending indices from 0 to {group.filters - 1}, "
                f"at least one; got {stays.tolist()}"
            )
        if len(stays) == group.filters:
            continue
        gone = np.ones(group.filters, dtype=bool)
        gone[stays] = False
        for member in group.members:
            parts.setdefault((member.module, member.side), []).append(member.index.numpy()[gone].ravel())
    return {
        side: torch.from_numpy(np.sort(np.concatenate(indices) if len(indices) > 1 else indices[0]))
        for side, indices in parts.items()
    }


@torch.inference_mode(False)  # the copy's tensors are ordinary ones even if the caller is in inference mode
def cut(model: nn.Module, removed: Removed, share: bool = False) -> nn.Module:
    """Return a copy of a network without some channels.

    Args:
        model: The network.
        removed: The channels to remove from each module side.
        share: Whether parameters that lose nothing share the original's storage, for a copy that is only run.

    Raises:
        ValueError: A module or channel does not exist, or a module cannot be cut.
    """
    model = uncompiled(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    replaced: dict[int, torch.Tensor] = {}  # by the id of the original tensor
    smaller = cut_modules(modules, removed)
    for path, (tensors, _) in smaller.items():
        replaced.update({id(getattr(modules[path], name)): tensor for name, tensor in tensors.items()})
    copies = copy_modules(model, replaced, share)
    for path, (_, sizes) in smaller.items():
        vars(copies[id(modules[path])]).update(sizes)
    return copies[id(model)]


def cut_modules(modules: Mapping[str, nn.Module], removed: Removed) -> dict[str, CutModule]:
    """Return what changes in every module that loses channels, by the module's path.

    Raises:
        ValueError: A module or channel does not exist, or a module cannot be cut.
    """
    smaller = {}
    for path in dict.fromkeys(path for path, _ in removed):
        module = modules.get(path)
        if module is None:
            raise ValueError(
                f"the groups do not fit the network, which has no module {path!r}; groups belong to the network that "
                "find_groups was called with"
            )
        spec = spec_of(module)
        reason = refusal(module) if spec is None else spec.obstacle(module)
        if spec is None or reason:
            raise PruningError(f"module {path} {reason}; find_groups leaves out such groups")
        kept: dict[Side, torch.Tensor] = {}
        for side in SIDES:
            if (path, side) in removed:
                kept[side] = _kept(path, side, spec.channels(module, side), removed[path, side])
        smaller[path] = spec.cut(module, kept)
    return smaller


def _kept(path: str, side: Side, size: int, gone: torch.Tensor) -> torch.Tensor:
    """The channels that remain on a side of a module, ascending."""
    indices = gone.numpy()
    if indices[-1] >= size:
        raise ValueError(
            f"the groups do not fit the network: {path} has {size} channels on its {side} side, and channel "
            f"{indices[-1]} is to be removed; groups belong to the original network that find_groups was called with"
        )
    stays = np.ones(size, dtype=bool)
    stays[indices] = False
    return torch.from_numpy(np.flatnonzero(stays))
