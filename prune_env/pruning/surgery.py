"""From a plan to a really smaller network, by index selection on tensors.

The original is never written to. Letters: C filters of a group, m positions that go with one filter.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from ..networks.resnet import ZeroPadShortcut

if TYPE_CHECKING:
    from .groups import Plan, PruningGroup

Side = Literal["out", "in"]
Removed = dict[tuple[str, Side], torch.Tensor]
"""(module path, side) -> the positions of its channel axis that go, ascending."""

HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


class PruningError(ValueError):
    """The network cannot be copied, traced or pruned."""


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
    return cut(model, removed_positions(groups, keep))


def kept_indices(
    groups: Sequence[PruningGroup], ranking: Mapping[str, torch.Tensor], plan: Plan
) -> dict[str, torch.Tensor]:
    """Agent id -> the indices of the filters that stay, ascending. Raises ValueError for a plan that does not fit."""
    check_plan(groups, plan)
    return {
        group.agent_id: ranking[group.agent_id][:kept].sort().values for group, kept in zip(groups, plan, strict=True)
    }


def restrict(
    groups: Sequence[PruningGroup], ranking: Mapping[str, torch.Tensor], plan: Plan
) -> tuple[list[PruningGroup], dict[str, torch.Tensor]]:
    """Groups and ranking of the network that `build` makes from `plan`, in its own numbering of filters.

    Filters keep their order of importance, so pruning in two steps equals pruning at once.
    """
    keep = kept_indices(groups, ranking, plan)
    removed = removed_positions(groups, keep)
    smaller, order = [], {}
    for group, kept in zip(groups, plan, strict=True):
        stays = keep[group.agent_id]
        members = []
        for member in group.members:
            index = member.index[stays]
            gone = removed.get((member.module, member.side))
            members.append(member if gone is None else replace(member, index=index - torch.searchsorted(gone, index)))
        smaller.append(replace(group, filters=kept, members=tuple(members)))
        order[group.agent_id] = torch.searchsorted(stays, ranking[group.agent_id][:kept])
    return smaller, order


def check_plan(groups: Sequence[PruningGroup], plan: Plan) -> None:
    """Raises ValueError unless the plan has one whole number from 1 to `filters` for every group."""
    if len(plan) != len(groups):
        raise ValueError(f"a plan holds one filter count for each of the {len(groups)} groups, got {len(plan)}")
    for group, kept in zip(groups, plan, strict=True):
        if int(kept) != kept or not 1 <= kept <= group.filters:
            raise ValueError(
                f"group {group.agent_id} ({', '.join(group.layers)}) can keep 1 to {group.filters} filters, "
                f"the plan says {kept}"
            )


def removed_positions(groups: Sequence[PruningGroup], keep: Mapping[str, torch.Tensor | Sequence[int]]) -> Removed:
    """Which positions of which channel axes go when the filters in `keep` stay. Raises ValueError for bad indices."""
    unknown = set(keep) - {group.agent_id for group in groups}
    if unknown:
        raise ValueError(f"kept filters are given for {', '.join(sorted(unknown))}, which no group has as agent id")
    parts: dict[tuple[str, Side], list[torch.Tensor]] = {}
    for group in groups:
        if group.agent_id not in keep:
            raise ValueError(f"kept filters of group {group.agent_id} ({', '.join(group.layers)}) are missing")
        stays = torch.as_tensor(keep[group.agent_id], dtype=torch.long)
        ascending = stays.ndim == 1 and bool((stays[1:] > stays[:-1]).all())
        if not ascending or len(stays) == 0 or stays[0] < 0 or stays[-1] >= group.filters:
            raise ValueError(
                f"kept filters of group {group.agent_id} must be ascending indices from 0 to {group.filters - 1}, "
                f"at least one; got {stays.tolist()}"
            )
        if len(stays) == group.filters:
            continue
        goes = torch.ones(group.filters, dtype=torch.bool)
        goes[stays] = False
        for member in group.members:
            parts.setdefault((member.module, member.side), []).append(member.index[goes].flatten())
    return {key: torch.cat(indices).sort().values for key, indices in parts.items()}


@torch.inference_mode(False)  # under a caller's inference mode, too, the copy's tensors are ordinary ones
def cut(model: nn.Module, removed: Removed, share: bool = False) -> nn.Module:
    """A copy of `model` without the removed positions.

    share  tensors that lose nothing keep the original's storage, for a copy that is only looked at
    """
    model = uncompiled(model)
    tensors: dict[int, torch.Tensor] = {}  # id of an original tensor -> what takes its place
    smaller = cut_modules(model, removed)
    for path, (changed, _) in smaller.items():
        module = model.get_submodule(path)
        tensors.update({id(getattr(module, name)): tensor for name, tensor in changed.items()})
    result = _copy(model, tensors, share)
    for path, (_, sizes) in smaller.items():
        for name, value in sizes.items():
            setattr(result.get_submodule(path), name, value)
    return result


def cut_modules(model: nn.Module, removed: Removed) -> dict[str, tuple[dict[str, torch.Tensor], dict[str, int]]]:
    """Path of every module that loses something -> its smaller tensors, and its attributes that say their sizes."""
    smaller = {}
    for path in dict.fromkeys(path for path, _ in removed):
        module = _submodule(model, path)
        out, inp = (_kept(module, path, side, removed.get((path, side))) for side in ("out", "in"))
        smaller[path] = _cut_module(module, out, inp)
    return smaller


@torch.inference_mode(False)
def twin(model: nn.Module) -> nn.Module:
    """A copy without hooks that shares the parameters' storage and owns its buffers: to trace, hook and look at."""
    return _copy(uncompiled(model), {}, share=True)


def uncompiled(model: nn.Module) -> nn.Module:
    """What torch.compile was given, if it was: compiled code knows the sizes that it was compiled for."""
    original = getattr(model, "_orig_mod", model)
    assert isinstance(original, nn.Module)
    return original


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
    size = channels(module, side)
    if gone[-1] >= size:
        raise ValueError(
            f"the groups do not fit the network: {path} has {size} channels on its {side} side, position "
            f"{int(gone[-1])} should go; groups belong to the unpruned network that find_groups was given"
        )
    stays = torch.ones(size, dtype=torch.bool)
    stays[gone] = False
    return stays.nonzero()[:, 0]


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
    transposed = isinstance(module, _ConvTransposeNd)  # its weight is [in, out, ...]
    names = ("weight",) if out is None else ("weight", "bias", "running_mean", "running_var")
    tensors = {
        name: _select(tensor, (inp, out) if transposed and name == "weight" else (out, inp))
        for name in names
        if (tensor := getattr(module, name, None)) is not None
    }
    return tensors, sizes


def _select(tensor: torch.Tensor, kept: Sequence[torch.Tensor | None]) -> torch.Tensor:
    """What stays along the first dimensions, None for all of one; biases and statistics have only the first."""
    tensor = tensor.detach()
    for axis, indices in enumerate(kept[: tensor.ndim]):
        if indices is not None:
            tensor = tensor.index_select(axis, indices.to(tensor.device))
    return tensor


def _cut_source(module: ZeroPadShortcut, out: torch.Tensor | None, inp: torch.Tensor | None) -> torch.Tensor:
    """The map of a zero-padded shortcut in the new numbering; -1 also where the copied channel is gone."""
    source = module.source if out is None else module.source[out.to(module.source.device)]
    if inp is None:
        return source.clone()
    renumbered = torch.full((module.in_channels + 1,), -1, device=source.device)  # the last entry is that of source -1
    renumbered[inp.to(source.device)] = torch.arange(len(inp), device=source.device)
    return renumbered[source]


def _copy(model: nn.Module, tensors: Mapping[int, torch.Tensor], share: bool) -> nn.Module:
    """A deep copy in which `tensors` (by the original's id) take the originals' place. No tensor is copied in vain.

    Parameters that are not replaced are cloned, or share their storage; buffers are always the copy's own, because a
    forward pass may write to them.
    """
    for path, module in model.named_modules():
        if module._forward_pre_hooks and "weight" in vars(module):  # computed before every call
            raise PruningError(
                f"the network cannot be copied (a hook of {path} computes its weight); it must be made permanent first "
                "by torch.nn.utils.prune.remove or remove_spectral_norm; parametrizations need no such step"
            )
    memo: dict[int, Any] = {}  # what deepcopy takes for an object it meets, by the object's id
    for parameter in model.parameters():
        data = tensors.get(id(parameter))
        if data is None:
            data = parameter.detach()
            data = data if share and not data.is_inference() else data.clone()
        memo[id(parameter)] = nn.Parameter(data, requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = tensors[id(buffer)] if id(buffer) in tensors else buffer.detach().clone()
    for module in model.modules():
        for name, value in vars(module).items():
            # Hooks stay behind. The many empty dicts of a module are most of what deepcopy would spend its time on.
            if type(value) in (dict, OrderedDict) and (name in HOOKS or not value):
                memo[id(value)] = type(value)()
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise PruningError(
            f"the network cannot be copied ({type(error).__name__}: {error}); masks, weight norms and other computed "
            "weights must be made permanent first, for instance by torch.nn.utils.prune.remove"
        ) from error


def _submodule(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise ValueError(
            f"the groups do not fit the network: it has no module {path!r}; groups belong to the network that "
            "find_groups was given"
        ) from error
