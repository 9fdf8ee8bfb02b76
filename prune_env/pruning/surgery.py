"""The cut: from a plan to a new, really smaller module, by index selection. The given module is never touched."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from ..networks.resnet import ZeroPadShortcut
from .groups import Member, Plan, PruningGroup


def build(
    model: nn.Module, groups: Sequence[PruningGroup], ranking: Mapping[str, torch.Tensor], plan: Plan
) -> nn.Module:
    """The network of a plan: in every group the `plan[g]` filters that rank first stay, in their old order.

    ranking  agent id -> int64 [C], most important filter first
    Raises ValueError for a plan that does not fit the groups.
    """
    return build_from_indices(model, groups, kept_indices(groups, ranking, plan))


def kept_indices(
    groups: Sequence[PruningGroup], ranking: Mapping[str, torch.Tensor], plan: Plan
) -> dict[str, torch.Tensor]:
    """Agent id -> the filters that stay, int64, rising."""
    if len(plan) != len(groups):
        raise ValueError(f"a plan has one filter count per group: {len(groups)} expected, got {len(plan)}")
    for group, kept in zip(groups, plan, strict=True):
        if not 1 <= kept <= group.filters:
            raise ValueError(f"plan keeps {kept} filters of {group.agent_id}; possible are 1 to {group.filters}")
    return {
        group.agent_id: ranking[group.agent_id][:kept].sort().values for group, kept in zip(groups, plan, strict=True)
    }


def build_from_indices(model: nn.Module, groups: Sequence[PruningGroup], kept: Mapping[str, torch.Tensor]) -> nn.Module:
    """A new module in which only the given filters stay; it shares no memory with `model`.

    Parameters keep their requires_grad, modules their mode; tied parameters stay tied.
    """
    # Copying the structure only: the memo says that every tensor is its own copy already.
    tensors = [*model.parameters(), *model.buffers()]
    network = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    for (name, side), keep in _kept_positions(model, groups, kept).items():
        _cut(network.get_submodule(name), side, keep, name)
    shared = {id(tensor) for tensor in tensors}
    copies: dict[int, torch.Tensor] = {}
    for module in network.modules():
        for table in (module._parameters, module._buffers):
            for key, tensor in table.items():
                if tensor is not None and id(tensor) in shared:
                    if id(tensor) not in copies:
                        fresh = tensor.detach().clone()
                        is_parameter = isinstance(tensor, nn.Parameter)
                        copies[id(tensor)] = nn.Parameter(fresh, tensor.requires_grad) if is_parameter else fresh
                    table[key] = copies[id(tensor)]  # type: ignore[assignment]
    return network


def restrict(
    groups: Sequence[PruningGroup], ranking: Mapping[str, torch.Tensor], plan: Plan
) -> tuple[list[PruningGroup], dict[str, torch.Tensor]]:
    """Groups and ranking of the network that `build` makes from `plan`, so that it can be cut further."""
    kept = kept_indices(groups, ranking, plan)
    gone: defaultdict[tuple[str, str], list[torch.Tensor]] = defaultdict(list)
    for group in groups:
        removed = torch.ones(group.filters, dtype=torch.bool)
        removed[kept[group.agent_id]] = False
        for member in group.members:
            gone[member.module, member.side].append(member.index[removed].flatten())
    smaller, ranks = [], {}
    for group in groups:
        stay = kept[group.agent_id]
        members = []
        for member in group.members:
            removed = torch.cat(gone[member.module, member.side]).sort().values
            index = member.index[stay]
            members.append(Member(member.module, member.side, index - torch.searchsorted(removed, index)))
        smaller.append(PruningGroup(group.agent_id, group.layers, len(stay), tuple(members)))
        ranks[group.agent_id] = torch.searchsorted(stay, ranking[group.agent_id][: len(stay)])
    return smaller, ranks


def _kept_positions(
    model: nn.Module, groups: Sequence[PruningGroup], kept: Mapping[str, torch.Tensor]
) -> dict[tuple[str, str], torch.Tensor]:
    """(module path, side) -> positions of its channel axis that stay, int64, rising; only axes that lose some."""
    masks: dict[tuple[str, str], torch.Tensor] = {}
    for group in groups:
        if len(kept[group.agent_id]) == group.filters:
            continue
        removed = torch.ones(group.filters, dtype=torch.bool)
        removed[kept[group.agent_id]] = False
        for member in group.members:
            key = member.module, member.side
            if key not in masks:
                masks[key] = torch.ones(channels(model.get_submodule(member.module), member.side), dtype=torch.bool)
            masks[key][member.index[removed].flatten()] = False
    return {key: mask.nonzero()[:, 0] for key, mask in masks.items()}


def channels(module: nn.Module, side: str) -> int:
    """Length of the channel axis that the module has on that side."""
    if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
        return module.num_features
    if isinstance(module, nn.Linear):
        return module.in_features if side == "in" else module.out_features
    assert isinstance(module, nn.Conv2d | ZeroPadShortcut)
    return module.in_channels if side == "in" else module.out_channels


def _cut(module: nn.Module, side: str, keep: torch.Tensor, name: str) -> None:
    """Keeps only the given positions of one side, in place."""
    if isinstance(module, nn.Conv2d):
        depthwise = module.groups > 1
        if side == "in":
            _select(module, "weight", keep, 1)
            module.in_channels = len(keep)
            return
        _select(module, "weight", keep, 0)
        _select(module, "bias", keep, 0)
        module.out_channels = len(keep)
        if depthwise:
            module.in_channels = module.groups = len(keep)
    elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
        for key in ("weight", "bias", "running_mean", "running_var"):
            _select(module, key, keep, 0)
        module.num_features = len(keep)
    elif isinstance(module, nn.Linear):
        _select(module, "weight", keep, 1 if side == "in" else 0)
        if side == "in":
            module.in_features = len(keep)
        else:
            _select(module, "bias", keep, 0)
            module.out_features = len(keep)
    elif isinstance(module, ZeroPadShortcut):
        module.select(side, keep)
    else:
        raise ValueError(f"cutting {name}, a {type(module).__name__}, is not supported")


def _select(module: nn.Module, key: str, keep: torch.Tensor, axis: int) -> None:
    """Replaces a parameter or buffer by the kept part of it."""
    tensor = getattr(module, key)
    if tensor is None:
        return
    part = tensor.detach().index_select(axis, keep.to(tensor.device))
    setattr(module, key, nn.Parameter(part, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else part)
