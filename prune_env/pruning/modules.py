"""How each type of module is handled: its channel axes, and how its tensors are cut and masked.

A `ModuleSpec` describes a type. Those of torch's layers are in `TORCH_SPECS`; `register_module` adds your own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from ..networks.resnet import ZeroPadShortcut
from .groups import Side

Tensors = Mapping[str, torch.Tensor]
"""Name of a parameter or buffer of a module -> a tensor that replaces it."""
Kind = TypeVar("Kind", bound=type[nn.Module])
SPEC = "__pruning_spec__"
"""Class attribute with the spec of a registered type. On the class, it also reaches workers that unpickle the class."""


class CutModule(NamedTuple):
    """What changes in a module that loses channels."""

    tensors: dict[str, torch.Tensor]
    """Parameter or buffer -> its smaller tensor."""
    sizes: dict[str, int]
    """Attribute that holds a size -> its new value."""


@dataclass(frozen=True)
class ModuleSpec:
    """How modules of one type are traced, cut and masked.

    A module with the sides 'in' and 'out' reads some channels and returns others, like a convolution. A module with
    the side 'out' alone returns the channels that it reads, like BatchNorm.

    Raises:
        ValueError: The fields contradict each other; the message names the side or the tensor.
    """

    sizes: Mapping[str, Side] = field(default_factory=dict)
    """Attribute -> side whose channels it counts. The first attribute of a side is the length of its channel axis; the
    others are scaled with it. Where no attribute counts them, the first dimension of one of the `tensors` may.

    A module without `tensors` and with `traced_as_whole=False` stores numbers for its code: the channels that it splits
    or those of each part of the `split`, or the channels and the heads of an attention, into which its code reshapes
    them."""
    tensors: Mapping[str, tuple[Side | None, ...]] = field(default_factory=dict)
    """Parameter or buffer -> side of each of its leading dimensions, None for a dimension that is never cut."""
    indices: Mapping[str, Side] = field(default_factory=dict)
    """Integer buffer -> side whose channels its values are; the value -1 stands for no channel."""
    channel_axis: int = 1
    """Channel axis of the module's first input and of its output."""
    traced_as_whole: bool = True
    """Whether tracing treats the module as one operation instead of following its forward pass. The module must then
    read channels from its first input only, and only through the tensors named here, and return one tensor. False for
    layers that call torch's own operation on their tensors, such as a variant of `nn.BatchNorm2d`."""
    refusal: str | None = None
    """Why such modules cannot be cut, as the end of a sentence that starts with a path; None if they can."""

    def __post_init__(self) -> None:
        sides: set[Side | None] = set(self.sizes.values())
        if unknown := sides - {"in", "out"}:
            raise ValueError(f"a side must be 'in' or 'out', got {unknown.pop()!r}")
        for name, along in self.tensors.items():
            if sum(side is not None for side in along) > 2:
                raise ValueError(f"tensor {name!r} has more than two dimensions with a side")
        for name in self.tensor_names:
            if unknown := {*self.tensors.get(name, ()), self.indices.get(name)} - sides - {None}:
                raise ValueError(f"tensor {name!r} has the side {unknown.pop()!r}, but no attribute in sizes counts it")
        if "in" in sides and not self._input_names and self.refusal is None:
            raise ValueError("no tensor reads the side 'in', so its channels cannot be masked; name one that does")

    @cached_property
    def tensor_names(self) -> tuple[str, ...]:
        """Names of all tensors that change when a side loses channels."""
        return tuple(dict.fromkeys((*self.tensors, *self.indices)))

    @cached_property
    def size_attributes(self) -> dict[str, Side]:
        """The numbers in `sizes`: attribute -> side whose channels it counts."""
        return {name: side for name, side in self.sizes.items() if name not in self.tensor_names}

    @cached_property
    def _input_names(self) -> tuple[str, ...]:
        sides = {name: (*self.tensors.get(name, ()), self.indices.get(name)) for name in self.tensor_names}
        return tuple(name for name in self.tensor_names if "in" in sides[name])

    @cached_property
    def _lengths(self) -> dict[Side, str]:
        """Side -> attribute with the length of its channel axis."""
        return {side: name for name, side in reversed(list(self.sizes.items()))}

    def channels(self, module: nn.Module, side: Side) -> int:
        """Return the number of channels on a side, 0 if the type does not have the side."""
        if side not in self._lengths:
            return 0
        size = getattr(module, self._lengths[side])
        return len(size) if isinstance(size, torch.Tensor) else size

    def obstacle(self, module: nn.Module) -> str | None:
        """Return why a module of this type cannot be cut, None if it can; see `refusal`."""
        kind = type(module).__name__
        if self.refusal is not None:
            return f"{self.refusal} ({kind})"
        for name in self.tensor_names:
            stored = name in module._parameters or name in module._buffers
            if not stored and getattr(module, name, None) is not None:
                return computes(name, module)
        return None

    def input_tensors(self, module: nn.Module) -> dict[str, torch.Tensor]:
        """Return the tensors with which a module reads the side 'in', by their names."""
        tensors = {name: getattr(module, name) for name in self._input_names}
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}

    def cut(self, module: nn.Module, kept: Mapping[Side, torch.Tensor]) -> CutModule:
        """Return what changes in a module when it keeps only some channels.

        Args:
            module: A module of this type without an `obstacle`; it does not change.
            kept: Side -> channels to keep, int64 and ascending. A side that is missing keeps all its channels.

        Returns:
            New tensors that share no memory with those of the module, and new sizes.
        """
        tensors, sizes = {}, {}
        stored = {**module._parameters, **module._buffers}
        for name in self.tensor_names:
            tensor = stored.get(name)
            if tensor is None:
                continue
            kept_along = [None if side is None else kept.get(side) for side in self.tensors.get(name, ())]
            smaller = _select(tensor.detach(), kept_along)
            side = self.indices.get(name)
            if side is not None and side in kept:
                smaller = _renumber(tensor if smaller is None else smaller, kept[side], self.channels(module, side))
            if smaller is not None:
                tensors[name] = smaller
        for name, side in self.size_attributes.items():
            if side in kept:
                sizes[name] = getattr(module, name) * len(kept[side]) // self.channels(module, side)
        return CutModule(tensors, sizes)

    def mask_channels(self, tensors: Tensors, channels: torch.Tensor) -> None:
        """Mask some input channels in tensors, in place.

        Args:
            tensors: The tensors in `input_tensors`, cut or not, and possibly others.
            channels: Input channels to mask, int64, in the numbering of these tensors.
        """
        for name, tensor in tensors.items():
            if "in" in self.tensors.get(name, ()):
                tensor.index_fill_(self.tensors[name].index("in"), channels.to(tensor.device), 0)
            if self.indices.get(name) == "in":
                tensor.masked_fill_(torch.isin(tensor, channels.to(tensor.device)), -1)

    def mask_inputs(self, original: Tensors, mask: torch.Tensor, out: Tensors) -> None:
        """Write tensors in which the input channels that a mask leaves out are masked.

        In contrast to `mask_channels`, the operations depend on the mask through its values only, so they can be
        recorded in a CUDA graph.

        Args:
            original: The tensors in `input_tensors`.
            mask: 1 for every input channel that is read, 0 for one that is masked, on the module's device: [C].
            out: Name -> the tensor to write to, with the shape of the original.
        """
        for name, result in original.items():
            if "in" in self.tensors.get(name, ()):
                axis = self.tensors[name].index("in")
                shape = [-1 if dimension == axis else 1 for dimension in range(result.ndim)]
                result = torch.mul(result, mask.to(result.dtype).view(shape), out=out[name])
            if self.indices.get(name) == "in":
                out[name].copy_(torch.where(mask[result.clamp(min=0)] > 0, result, -1))


Spec = ModuleSpec | Callable[[Any], ModuleSpec]
"""A spec, or a function that returns the spec of a module whose handling depends on its settings."""


def register_module(spec: Spec) -> Callable[[Kind], Kind]:
    """Return a decorator that registers how modules of a class, and of its subclasses, are handled.

    The library then traces, cuts and masks such modules in networks of any kind. Register a class where it is defined:
    worker processes import that file, too. Call the decorator for a class of another package.

    Args:
        spec: How to handle the modules, or a function that takes a module and returns that.

    Returns:
        A decorator that returns the class unchanged.

    Raises:
        TypeError: `spec` is neither a `ModuleSpec` nor a function, or the decorated object is not a module class.

    Example:
        A layer that scales every channel; pruning would otherwise keep all channels that reach `scale`:

        >>> @register_module(ModuleSpec(sizes={"channels": "out"}, tensors={"scale": ("out",)}))
        ... class LayerScale(nn.Module):
        ...     def __init__(self, channels: int) -> None:
        ...         super().__init__()
        ...         self.channels, self.scale = channels, nn.Parameter(torch.ones(channels))
        ...
        ...     def forward(self, x: torch.Tensor) -> torch.Tensor:
        ...         return x * self.scale[:, None, None]

        A layer whose output channel o is the input channel `source[o]`; its two sides lose channels independently:

        >>> spec = ModuleSpec(
        ...     sizes={"in_channels": "in", "out_channels": "out"},
        ...     tensors={"source": ("out",)},
        ...     indices={"source": "in"},
        ... )
        >>> register_module(spec)(ChannelMap)
    """
    if not isinstance(spec, ModuleSpec) and not callable(spec):
        raise TypeError(f"register_module takes a ModuleSpec or a function, got {type(spec).__name__}")

    def register(kind: Kind) -> Kind:
        if not isinstance(kind, type) or not issubclass(kind, nn.Module):
            raise TypeError(f"register_module decorates a class of modules (nn.Module), got {kind!r}")
        setattr(kind, SPEC, spec)
        return kind

    return register


def spec_of(module: nn.Module) -> ModuleSpec | None:
    """Return how a module is handled, None if no class that it inherits from is registered or known."""
    for kind in type(module).__mro__:
        spec = vars(kind).get(SPEC) or TORCH_SPECS.get(kind)
        if spec is not None:
            return spec if isinstance(spec, ModuleSpec) else spec(module)
        known = SPECS_BY_NAME.get(kind.__name__)
        if known is not None and all(hasattr(module, name) for name in (*known.sizes, *known.tensors)):
            return known
    return None


def channels(module: nn.Module, side: Side) -> int:
    """Return the number of channels on a side of a module, 0 if it has no such side that can be cut."""
    spec = spec_of(module)
    return 0 if spec is None else spec.channels(module, side)


def computes(name: str, module: nn.Module) -> str:
    """Return that a module computes a parameter, and how to change this, as the end of a sentence."""
    reason = f"computes its {name} ({type(module).__name__})"
    if parametrize.is_parametrized(module):
        return f"{reason}; torch.nn.utils.parametrize.remove_parametrizations makes it permanent"
    return reason


def refusal(module: nn.Module) -> str | None:
    """Return why a module cannot be cut, as the end of a sentence that starts with its path; None if it can be cut."""
    spec = spec_of(module)
    if spec is None:
        return f"is of the type {type(module).__name__}, which needs an entry (prune_env.pruning.register_module)"
    return spec.obstacle(module)


def _select(tensor: torch.Tensor, kept: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    """The kept entries along each leading dimension, where None keeps all of one; None if nothing is removed."""
    rows, columns = kept if len(kept) == 2 else (None, None)
    if rows is not None and columns is not None and tensor.is_contiguous() and tensor[0, 0].numel() > 1:
        # Both dimensions at once: kernels are long enough to be copied one by one, and nothing is copied twice.
        places = rows[:, None] * tensor.shape[1] + columns
        chosen = tensor.flatten(0, 1).index_select(0, places.flatten().to(tensor.device))
        return chosen.view(len(rows), len(columns), *tensor.shape[2:])
    result = None
    for axis, entries in enumerate(kept):
        if entries is not None:
            result = (tensor if result is None else result).index_select(axis, entries.to(tensor.device))
    return result


def _renumber(indices: torch.Tensor, kept: torch.Tensor, total: int) -> torch.Tensor:
    """Indices of `total` channels as indices of the kept ones, -1 for those that are not kept."""
    new = torch.full((total + 1,), -1, device=indices.device, dtype=indices.dtype)  # the last entry is that of -1
    new[kept.to(indices.device)] = torch.arange(len(kept), device=indices.device, dtype=indices.dtype)
    return new[indices]


@lru_cache
def _convolution_spec(dimensions: int, transposed: bool, grouped: bool) -> ModuleSpec:
    axis = -1 - dimensions
    if not grouped:
        weight: tuple[Side, Side] = ("in", "out") if transposed else ("out", "in")
        tensors: dict[str, tuple[Side, ...]] = {"weight": weight, "bias": ("out",)}
        return ModuleSpec(
            {"out_channels": "out", "in_channels": "in"}, tensors, channel_axis=axis, traced_as_whole=False
        )
    refused = "is a transposed convolution in groups" if transposed else None
    sizes: dict[str, Side] = {"out_channels": "out", "in_channels": "out", "groups": "out"}  # whole groups are cut
    return ModuleSpec(
        sizes, {"weight": ("out",), "bias": ("out",)}, channel_axis=axis, traced_as_whole=False, refusal=refused
    )


def _convolution(module: _ConvNd) -> ModuleSpec:
    return _convolution_spec(len(module.kernel_size), isinstance(module, _ConvTransposeNd), module.groups > 1)


TORCH_SPECS: dict[type, Spec] = {
    _ConvNd: _convolution,
    nn.Linear: ModuleSpec(
        {"out_features": "out", "in_features": "in"},
        {"weight": ("out", "in"), "bias": ("out",)},
        channel_axis=-1,
        traced_as_whole=False,
    ),
    _NormBase: ModuleSpec(
        {"num_features": "out"},
        {name: ("out",) for name in ("weight", "bias", "running_mean", "running_var")},
        traced_as_whole=False,
    ),
    nn.GroupNorm: ModuleSpec(  # whole groups are cut
        {"num_channels": "out", "num_groups": "out"},
        {"weight": ("out",), "bias": ("out",)},
        traced_as_whole=False,
    ),
    nn.PReLU: ModuleSpec({"num_parameters": "out"}, {"weight": ("out",)}, traced_as_whole=False),
}
"""Specs of torch's layers; those of all other classes are stored on the class."""

SPECS_BY_NAME: dict[str, ModuleSpec] = {
    "FrozenBatchNorm2d": ModuleSpec(  # torchvision, detectron2
        {"weight": "out"}, {name: ("out",) for name in ("weight", "bias", "running_mean", "running_var")}
    ),
    "Attention": ModuleSpec({"attn_dim": "out", "num_heads": "out"}, traced_as_whole=False),  # timm; heads are cut
    "C2f": ModuleSpec({"c": "out"}, traced_as_whole=False),  # ultralytics; c is the number that its code splits by
    "CrossStage": ModuleSpec({"expand_chs": "out"}, traced_as_whole=False),  # timm; its code splits by half of them
    "CrossStage3": ModuleSpec({"expand_chs": "out"}, traced_as_whole=False),
}
"""Specs by the names of classes that many packages copy. The proof finds a class that only has the name."""

register_module(
    ModuleSpec(
        sizes={"out_channels": "out", "in_channels": "in"},
        tensors={"source": ("out",)},
        indices={"source": "in"},
    )
)(ZeroPadShortcut)
