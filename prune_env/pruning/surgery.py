"""From a plan to a really smaller network, by index selection on tensors.

The original is never written to. Letters: C filters of a group, m positions that go with one filter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from ..networks.resnet import ZeroPadShortcut
from .copies import PruningError, copied, uncompiled

if TYPE_CHECKING:
    from .groups import Plan, PruningGroup

Side = Literal["out", "in"]
Removed = dict[tuple[str, Side], torch.Tensor]
"""(module path, side) -> the positions of its channel axis that go, ascending."""


PER_CHANNEL = ("weight", "bias", "running_mean", "running_var")
"""Tensors with one number for each channel; a weight of more dimensions has a kernel for each."""


def build(
    model: nn.Module, groups: Sequence[PruningGroup], ranking: Mapping[str, torch.Tensor], plan: Plan
) -> nn.Module:
    """The network that keeps the `plan[g]` first-ranked filters of every group g: new, smaller, independent.

    Every parameter is a leaf with its own storage and the original's requires_grad; modes and device are kept; forward
    and backward hooks are not carried over. Raises ValueError for a plan that does not fit the groups.
    """
    return build_from_indices(model, groups, kept_indices(groups, ranking, plan))


def build_from_indices(
    model: nn.Module, groups: Sequence[PruningGroup], keep: Mapping[str, torch.Tensor | Sequence[int]]
) -> nn.Module:
    """The same from the filters that stay: agent id -> their indices in the unpruned network, ascending.

    Needs no ranking, so a saved network can be had again. Raises ValueError for indices or groups that do not fit.
    """
    return cut(model, removed_channels(groups, keep))


def kept_indices(
    groups: Sequence[PruningGroup], ranking: Mapping[str, torch.Tensor], plan: Plan
) -> dict[str, torch.Tensor]:
    """Agent id -> the indices of the filters that stay, ascending. Raises ValueError for a plan that does not fit."""
    check_plan(groups, plan)
    return {group.name: ranking[group.name][:kept].sort().values for group, kept in zip(groups, plan, strict=True)}


def restrict(
    groups: Sequence[PruningGroup], ranking: Mapping[str, torch.Tensor], plan: Plan
) -> tuple[list[PruningGroup], dict[str, torch.Tensor]]:
    """Groups and ranking of the network that `build` makes from `plan`, in its own numbering of filters.

    Filters keep their order of importance, so pruning in two steps equals pruning at once.
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


def check_plan(groups: Sequence[PruningGroup], plan: Plan) -> None:
    """Raises ValueError unless the plan has one whole number from 1 to `filters` for every group.

    And TypeError for a mapping, which has no order that counts.
    """
    if isinstance(plan, Mapping):  # pruned.json lists what layers keep, under the name of a plan
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
                f"the plan says {kept}"
            )


def removed_channels(groups: Sequence[PruningGroup], keep: Mapping[str, torch.Tensor | Sequence[int]]) -> Removed:
    """Which positions of which channel axes go when the filters in `keep` stay. Raises ValueError for bad indices."""
    unknown = set(keep) - {group.name for group in groups}
    if unknown:
        raise ValueError(f"kept filters are given for {', '.join(sorted(unknown))}, which no group has as agent id")
    # NumPy, because a plan touches hundreds of short index arrays, and torch takes several times as long for each.
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
        goes = np.ones(group.filters, dtype=bool)
        goes[stays] = False
        for member in group.members:
            parts.setdefault((member.module, member.side), []).append(member.index.numpy()[goes].ravel())
    return {
        side: torch.from_numpy(np.sort(np.concatenate(indices) if len(indices) > 1 else indices[0]))
        for side, indices in parts.items()
    }


@torch.inference_mode(False)  # under a caller's inference mode, too, the copy's tensors are ordinary ones
def cut(model: nn.Module, removed: Removed, share: bool = False) -> nn.Module:
    """A copy of `model` without the removed positions.

    share  tensors that lose nothing keep the original's storage, for a copy that is only looked at
    """
    model = uncompiled(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    tensors: dict[int, torch.Tensor] = {}  # id of an original tensor -> what takes its place
    smaller = cut_modules(modules, removed)
    for path, (changed, _) in smaller.items():
        tensors.update({id(getattr(modules[path], name)): tensor for name, tensor in changed.items()})
    copies = copied(model, tensors, share)
    for path, (_, sizes) in smaller.items():
        vars(copies[id(modules[path])]).update(sizes)
    return copies[id(model)]


def cut_modules(
    modules: Mapping[str, nn.Module], removed: Removed
) -> dict[str, tuple[dict[str, torch.Tensor], dict[str, int]]]:
    """Path of every module that loses something -> its smaller tensors, and its attributes that say their sizes."""
    smaller = {}
    for path in dict.fromkeys(path for path, _ in removed):
        module = modules.get(path)
        if module is None:
            raise ValueError(
                f"the groups do not fit the network: it has no module {path!r}; groups belong to the network that "
                "find_groups was given"
            )
        out, inp = (_kept(module, path, side, removed.get((path, side))) for side in ("out", "in"))
        smaller[path] = _cut_module(module, out, inp)
    return smaller


def first_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
    """What a module was called on, by position or by name."""
    tensor: torch.Tensor = args[0] if args else next(iter(kwargs.values()))
    return tensor


def channels(module: nn.Module, side: Side) -> int:
    """Length of a module's channel axis, 0 where it has none that could be cut."""
    if isinstance(module, nn.PReLU) and module.num_parameters == 1:
        return 0
    return next((getattr(module, name) for name, of in _size_attributes(module).items() if of == side), 0)


def refusal(module: nn.Module) -> str | None:
    """Why surgery cannot cut this module, None if it can."""
    kind = type(module).__name__
    if isinstance(module, _ConvTransposeNd) and module.groups > 1:
        return f"is a transposed convolution in groups ({kind})"
    if not isinstance(module, (_ConvNd, nn.Linear, _NormBase, nn.PReLU, ZeroPadShortcut)):
        return f"is of a type that cannot be cut ({kind})"
    if hasattr(module, "weight") and "weight" not in module._parameters:
        return f"computes its weight ({kind}: a mask, a parametrisation or a weight norm)"
    return None


def _kept(module: nn.Module, path: str, side: Side, gone: torch.Tensor | None) -> torch.Tensor | None:
    """Positions that stay, None for all of them."""
    if gone is None:
        return None
    size, positions = channels(module, side), gone.numpy()
    if positions[-1] >= size:
        raise ValueError(
            f"the groups do not fit the network: {path} has {size} channels on its {side} side, position "
            f"{positions[-1]} should go; groups belong to the unpruned network that find_groups was given"
        )
    stays = np.ones(size, dtype=bool)
    stays[positions] = False
    return torch.from_numpy(np.flatnonzero(stays))


def _size_attributes(module: nn.Module) -> dict[str, Side]:
    """Attributes that say how long the channel axis of a side is."""
    if isinstance(module, _ConvNd) and module.groups > 1:  # whole groups go: its two sides are one
        return {"out_channels": "out"}
    if isinstance(module, (_ConvNd, ZeroPadShortcut)):
        return {"out_channels": "out", "in_channels": "in"}
    if isinstance(module, nn.Linear):
        return {"out_features": "out", "in_features": "in"}
    if isinstance(module, _NormBase):
        return {"num_features": "out"}
    return {"num_parameters": "out"} if isinstance(module, nn.PReLU) else {}


def _cut_module(
    module: nn.Module, out: torch.Tensor | None, inp: torch.Tensor | None
) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """The tensors that change, and the attributes that say their sizes. None leaves a side alone."""
    if reason := refusal(module):
        raise PruningError(f"a module {reason}; find_groups leaves such groups out")
    stays = {"out": out, "in": inp}
    sizes = {name: len(kept) for name, side in _size_attributes(module).items() if (kept := stays[side]) is not None}
    if isinstance(module, ZeroPadShortcut):
        return {"source": _cut_source(module, out, inp)}, sizes
    if isinstance(module, _ConvNd) and module.groups > 1:
        sizes["groups"] = module.groups * sizes["out_channels"] // module.out_channels
        sizes["in_channels"] = module.in_channels // module.groups * sizes["groups"]
    tensors = {}
    for name, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is not None and name == "weight" and tensor.ndim > 1:
            transposed = isinstance(module, _ConvTransposeNd)  # its weight is [in, out, ...]
            tensors[name] = _select(tensor.detach(), *((inp, out) if transposed else (out, inp)))
        elif tensor is not None and name in PER_CHANNEL and out is not None:
            tensors[name] = tensor.detach().index_select(0, out.to(tensor.device))
    return tensors, sizes


def _select(weight: torch.Tensor, rows: torch.Tensor | None, columns: torch.Tensor | None) -> torch.Tensor:
    """What stays along the first two dimensions, None for all of one."""
    if rows is not None and columns is not None and weight.is_contiguous() and weight[0, 0].numel() > 1:
        # Both at once: a kernel is long enough to be copied on its own, and nothing is read or written twice.
        places = rows[:, None] * weight.shape[1] + columns
        chosen = weight.flatten(0, 1).index_select(0, places.flatten().to(weight.device))
        return chosen.view(len(rows), len(columns), *weight.shape[2:])
    for axis, indices in enumerate((rows, columns)):
        if indices is not None:
            weight = weight.index_select(axis, indices.to(weight.device))
    return weight


def _cut_source(module: ZeroPadShortcut, out: torch.Tensor | None, inp: torch.Tensor | None) -> torch.Tensor:
    """The map of a zero-padded shortcut in the new numbering; -1 also where the copied channel is gone."""
    source = module.source if out is None else module.source[out.to(module.source.device)]
    if inp is None:
        return source.clone()
    renumbered = torch.full((module.in_channels + 1,), -1, device=source.device)  # the last entry is that of source -1
    renumbered[inp.to(source.device)] = torch.arange(len(inp), device=source.device)
    return renumbered[source]
