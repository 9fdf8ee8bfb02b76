"""What each operation does to labels: one rule for every kind, a table from operations to rules.

A rule sees (trace, function, arguments, keyword arguments, output) of one call and sets the output's labels. Where a
cut would not commute with the operation it freezes the filters, and the output has no labels. Labels have length 1
along dimensions in which they do not change, see `labels.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from .trace import Trace

Rule = Callable[["Trace", Any, Sequence[Any], dict[str, Any], Any], None]
aten = torch.ops.aten


def is_elementwise(func: Any) -> bool:
    """torch tags elementwise operations; their in-place forms not always."""
    return torch.Tag.pointwise in func.tags or func.overloadpacket in ELEMENTWISE


def elementwise(trace: Trace, func: Any, args: Sequence[Any], kwargs: dict[str, Any], output: Any) -> None:
    """Operands that vary along the same dimension are tied, element by element."""
    operands = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    aligned = {id(t): _aligned(labels, output.ndim) for t in operands if (labels := trace[t]) is not None}
    lengths = [max(labels.shape[axis] for labels in aligned.values()) for axis in range(output.ndim)]
    joint = torch.zeros([1] * output.ndim, dtype=torch.long)
    for tensor in operands:
        shape = [1] * (output.ndim - tensor.ndim) + list(tensor.shape)
        labels = aligned.get(id(tensor))
        if labels is None:
            if any(n > 1 and length > 1 for n, length in zip(lengths, shape, strict=True)):
                name = trace.name(tensor)
                reason = f"they meet {f'the parameter {name}' if name else 'a tensor'} outside a layer"
                for other in aligned.values():
                    trace.labels.freeze(other, reason)
        elif any(n > 1 and length == 1 for n, length in zip(lengths, shape, strict=True)):
            trace.labels.freeze(labels, "they are broadcast over the channels of other layers")
        else:
            if bool((joint > 0).any()):
                trace.labels.tie(joint, labels)
            joint = torch.where(joint > 0, joint, labels)
    trace[output] = joint if bool((joint > 0).any()) else None


def convolution(trace: Trace, func: Any, args: Sequence[Any], kwargs: dict[str, Any], output: Any) -> None:
    """Reads its input's channels and hands out new labels; of several groups, each goes whole or not at all."""
    images, weight, bias = args[0], args[1], args[2] if len(args) > 2 else kwargs.get("bias")
    path, reason = trace.owner(weight, bias)
    if not isinstance(trace.modules.get(path), nn.modules.conv._ConvNd):
        trace.freeze(images, reason or f"{path} is no convolution and does one")
        return
    module: Any = trace.modules[path]
    axis = images.ndim - 1 - len(module.kernel_size)
    inputs = _along(trace, images, axis, f"{path} reads them at different positions")
    filters = trace.produce(path, module.out_channels)
    if reason is not None:
        trace.freeze(images, reason)
        trace.labels.freeze(filters, reason)
    elif inputs is None and module.groups > 1:
        trace.labels.freeze(filters, f"{path} is a grouped convolution of channels that must stay")
    elif inputs is not None and module.groups > 1:
        parts = inputs.reshape(module.groups, -1)
        trace.labels.tie(parts, parts[:, :1])
        trace.labels.tie(filters.view(module.groups, -1), parts[:, :1])
    elif module.groups == 1:
        trace.read(path, "in", torch.zeros(module.in_channels, dtype=torch.long) if inputs is None else inputs)
    trace[output] = filters.view([-1 if d == axis else 1 for d in range(images.ndim)])


def linear(trace: Trace, func: Any, args: Sequence[Any], kwargs: dict[str, Any], output: Any) -> None:
    """As a 1x1 convolution, along the last dimension."""
    features, weight, bias = args[0], args[1], args[2] if len(args) > 2 else kwargs.get("bias")
    path, reason = trace.owner(weight, bias)
    module = trace.modules.get(path)
    if not isinstance(module, nn.Linear):
        trace.freeze(features, reason or f"{path} is no linear layer and does its work")
        return
    inputs = _along(trace, features, features.ndim - 1, f"{path} reads them at different positions")
    outputs = trace.produce(path, module.out_features)
    if reason is not None:
        trace.freeze(features, reason)
        trace.labels.freeze(outputs, reason)
    else:
        trace.read(path, "in", torch.zeros(module.in_features, dtype=torch.long) if inputs is None else inputs)
    if features.ndim > 2:
        trace.pointwise.add(path)
    trace[output] = _aligned(outputs, output.ndim)


def by_channel(trace: Trace, func: Any, args: Sequence[Any], kwargs: dict[str, Any], output: Any) -> None:
    """BatchNorm, InstanceNorm, PReLU: parameters and statistics for every channel, dimension 1."""
    images = args[0]
    tensors = [tensor for tensor in args[1:] if isinstance(tensor, torch.Tensor)]
    if func.overloadpacket == aten.prelu and tensors[0].numel() == 1:
        tensors = []
    if tensors:
        path, reason = trace.owner(*tensors)
        channels = _along(trace, images, 1, f"{path} reads them at different positions")
        if reason is not None:
            trace.freeze(images, reason)
        elif channels is not None:
            trace.read(path, "out", channels)
    trace[output[0] if isinstance(output, tuple) else output] = trace[images]


def normalised_over(trace: Trace, func: Any, args: Sequence[Any], kwargs: dict[str, Any], output: Any) -> None:
    """LayerNorm, GroupNorm, softmax: what goes would change the share of what stays."""
    images = args[0]
    labels = trace[images]
    assert labels is not None
    if func.overloadpacket == aten.layer_norm:
        axes: Sequence[int] = range(-len(args[1]), 0)
    elif func.overloadpacket == aten.group_norm:
        axes = range(1, images.ndim)
    else:
        axes = (args[1],)
    if any(labels.shape[axis] > 1 for axis in axes):
        where = f" in {trace.running}" if trace.running else ""
        trace.labels.freeze(labels, f"{func.overloadpacket.__name__}{where} normalises across them")
        labels = None
    trace[output] = labels


def same(trace: Trace, func: Any, args: Sequence[Any], kwargs: dict[str, Any], output: Any) -> None:
    """A copy, a new tensor of the same shape, dropout."""
    trace[output[0] if isinstance(output, tuple) else output] = trace[args[0]]


def moved(trace: Trace, func: Any, args: Sequence[Any], kwargs: dict[str, Any], output: Any) -> None:
    """Dimensions change places: the same call does it to labels."""
    trace[output] = func(trace[args[0]], *args[1:], **kwargs)


def expanded(trace: Trace, func: Any, args: Sequence[Any], kwargs: dict[str, Any], output: Any) -> None:
    """Labels of length 1 stay so: the copies come from the same filter."""
    labels = trace[args[0]]
    assert labels is not None
    trace[output] = _aligned(labels, output.ndim)


def repeated(trace: Trace, func: Any, args: Sequence[Any], kwargs: dict[str, Any], output: Any) -> None:
    """As often along varying dimensions as the tensor is."""
    labels = trace[args[0]]
    assert labels is not None
    labels = _aligned(labels, output.ndim)
    trace[output] = labels.repeat([times if n > 1 else 1 for times, n in zip(args[1], labels.shape, strict=True)])


def reshaped(trace: Trace, func: Any, args: Sequence[Any], kwargs: dict[str, Any], output: Any) -> None:
    """Merging dimensions is always right. Splitting one needs the same from every part: filter i of each is tied."""
    tensor = args[0]
    labels = trace[tensor]
    assert labels is not None
    full, target = list(labels.shape), [1] * output.ndim
    for inner, outer in _blocks(tensor.shape, output.shape):
        varying = [axis for axis in inner if labels.shape[axis] > 1]
        if not varying:
            continue
        lengths = [output.shape[axis] for axis in outer if output.shape[axis] > 1]
        if len(lengths) > 1:
            if len([axis for axis in inner if tensor.shape[axis] > 1]) > 1 or len(lengths) > 2:
                trace.labels.freeze(labels, "a reshape takes their channels apart")
                trace[output] = None
                return
            parts = labels.movedim(varying[0], 0).unflatten(0, lengths)  # [parts, length, ...]
            trace.labels.tie(parts, parts[:1])
        for axis in inner:
            full[axis] = tensor.shape[axis]
        for axis in outer:
            target[axis] = output.shape[axis]
    trace[output] = labels.expand(full).reshape(target)


def cut_out(trace: Trace, func: Any, args: Sequence[Any], kwargs: dict[str, Any], output: Any) -> None:
    """Slices and single positions; along channels their bounds are numbers, which would not follow."""
    labels = trace[args[0]]
    assert labels is not None
    axis = args[1] if len(args) > 1 else kwargs.get("dim", 0)
    drops = output.ndim < args[0].ndim
    if labels.shape[axis] == 1:
        trace[output] = labels.squeeze(axis) if drops else labels
    elif output.shape == args[0].shape:
        trace[output] = labels
    else:
        trace.labels.freeze(labels, "they pass through a slice of the channels, whose bounds would not follow")


def parted(trace: Trace, func: Any, args: Sequence[Any], kwargs: dict[str, Any], output: Any) -> None:
    """Parts of equal length follow a change of channels if each loses the same: filter i of each is tied."""
    labels = trace[args[0]]
    assert labels is not None
    unbinds = func.overloadpacket == aten.unbind
    position = 1 if unbinds else 2
    axis = args[position] if len(args) > position else kwargs.get("dim", 0)
    if labels.shape[axis] == 1:
        for part in output:
            trace[part] = labels.squeeze(axis) if unbinds else labels
    elif unbinds or len({part.shape[axis] for part in output}) > 1:
        trace.labels.freeze(labels, "they pass through a split, whose sizes would not follow")
    else:
        parts = labels.chunk(len(output), axis)
        for part, piece in zip(output, parts, strict=True):
            trace.labels.tie(parts[0], piece)
            trace[part] = piece


def concatenated(trace: Trace, func: Any, args: Sequence[Any], kwargs: dict[str, Any], output: Any) -> None:
    """Labels are concatenated, 0 for parts that have none."""
    tensors, axis = args[0], (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % output.ndim
    if func.overloadpacket == aten.stack:
        tensors = [_unsqueezed(trace, tensor, axis) for tensor in tensors]
    tensors = [tensor for tensor in tensors if tensor.ndim == output.ndim]  # torch skips empty vectors
    none = torch.zeros([1] * output.ndim, dtype=torch.long)
    parts = [none if (labels := trace[tensor]) is None else labels for tensor in tensors]
    lengths = [tensor.shape[axis] for tensor in tensors]
    if all(part.shape[axis] == 1 for part in parts) and len({tuple(part.flatten().tolist()) for part in parts}) == 1:
        trace[output] = parts[0]  # along positions, of the same channels
        return
    common = [max(part.shape[d] for part in parts) for d in range(output.ndim)]
    parts = [
        part.expand([length if d == axis else common[d] for d in range(output.ndim)])
        for part, length in zip(parts, lengths, strict=True)
    ]
    trace[output] = torch.cat(parts, axis)


def padded(trace: Trace, func: Any, args: Sequence[Any], kwargs: dict[str, Any], output: Any) -> None:
    """Around positions the label goes on; around channels there are constants."""
    labels = trace[args[0]]
    assert labels is not None
    pads = list(args[1])
    for number in range(len(pads) // 2):
        if labels.shape[-1 - number] == 1:
            pads[2 * number : 2 * number + 2] = 0, 0
    trace[output] = nn.functional.pad(labels, pads)


def over_positions(trace: Trace, func: Any, args: Sequence[Any], kwargs: dict[str, Any], output: Any) -> None:
    """Pooling, interpolation, padding by reflection: within a channel, over the last one, two or three dimensions."""
    labels = trace[args[0]]
    assert labels is not None
    spatial = next(int(digit) for digit in func.overloadpacket.__name__ if digit in "123")
    if any(length > 1 for length in labels.shape[-spatial:]):
        trace.labels.freeze(labels, f"{func.overloadpacket} runs along them")
        return
    trace[output[0] if isinstance(output, tuple) else output] = labels


def reduced(trace: Trace, func: Any, args: Sequence[Any], kwargs: dict[str, Any], output: Any) -> None:
    """Means, sums and extremes over positions keep labels; over channels they mix them."""
    tensor = args[0]
    labels = trace[tensor]
    assert labels is not None
    axes = args[1] if len(args) > 1 else kwargs.get("dim")
    axes = range(tensor.ndim) if axes is None or axes == [] else [axes] if isinstance(axes, int) else axes
    axes = sorted({axis % tensor.ndim for axis in axes})
    if any(labels.shape[axis] > 1 for axis in axes):
        trace.labels.freeze(labels, f"they pass through {func.overloadpacket} over the channels")
        return
    result = output[0] if isinstance(output, tuple) else output
    kept = [length for axis, length in enumerate(labels.shape) if axis not in axes or result.ndim == tensor.ndim]
    trace[result] = labels.reshape(kept)


def shuffled(trace: Trace, func: Any, args: Sequence[Any], kwargs: dict[str, Any], output: Any) -> None:
    """Channels between groups (ShuffleNet), or from depth to space: what must stay in step is tied."""
    tensor, parts = args[0], args[1]
    labels = _along(trace, tensor, tensor.ndim - 3, f"{func.overloadpacket} takes their positions apart")
    if labels is None:
        return
    if func.overloadpacket == aten.pixel_shuffle:
        rows = labels.view(-1, parts * parts)
        trace.labels.tie(rows, rows[:, :1])
        labels = rows[:, 0]
    else:
        rows = labels.view(parts, -1)
        trace.labels.tie(rows, rows[:1])
        labels = rows.T.flatten()
    trace[output] = _aligned(labels.view(-1, 1, 1), output.ndim)


def _along(trace: Trace, tensor: torch.Tensor, axis: int, reason: str) -> torch.Tensor | None:
    """Labels of every place along one dimension, [C]; None, and frozen, where they vary along another one, too."""
    labels = trace[tensor]
    if labels is None:
        return None
    labels = trace.labels.compressed(labels)
    if any(length > 1 for place, length in enumerate(labels.shape) if place != axis):
        trace.labels.freeze(labels, reason)
        return None
    return labels.flatten().expand(tensor.shape[axis])


def _aligned(labels: torch.Tensor, dimensions: int) -> torch.Tensor:
    """With as many dimensions, as broadcasting adds them."""
    return labels.view(*[1] * (dimensions - labels.ndim), *labels.shape)


def _unsqueezed(trace: Trace, tensor: torch.Tensor, axis: int) -> torch.Tensor:
    result = tensor.unsqueeze(axis)
    labels = trace[tensor]
    trace[result] = None if labels is None else labels.unsqueeze(axis)
    return result


def _blocks(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Dimensions of a reshape that hold the same elements, the fewest at a time."""
    blocks = []
    i = j = 0
    while i < len(before) or j < len(after):
        inner, outer = list(range(i, min(i + 1, len(before)))), list(range(j, min(j + 1, len(after))))
        i, j = i + len(inner), j + len(outer)
        while (have := math.prod(before[a] for a in inner)) != (want := math.prod(after[a] for a in outer)):
            if have < want:
                inner.append(i)
                i += 1
            else:
                outer.append(j)
                j += 1
        blocks.append((inner, outer))
    return blocks


def _packets(names: str) -> list[Any]:
    """The operations of these names that this torch has."""
    return [getattr(aten, name) for name in names.split() if hasattr(aten, name)]


ELEMENTWISE = set(
    _packets("copy_ hardswish hardswish_ hardtanh_ leaky_relu_ elu_ selu_ celu_ clamp_ masked_fill where")
)
"""Elementwise operations that torch does not tag as such."""

SEVERAL = (elementwise, concatenated)
"""Rules that look at all operands; the others at the first, and what comes with it must not carry labels."""
PRODUCERS = (convolution, linear)
"""Rules that also hold for inputs without labels: their outputs have some."""

RULES: dict[Any, Rule] = {
    packet: rule
    for rule, names in (
        (convolution, "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d"),
        (linear, "linear"),
        (by_channel, "batch_norm instance_norm prelu"),
        (normalised_over, "layer_norm group_norm softmax log_softmax _softmax _log_softmax"),
        (
            same,
            "clone contiguous detach alias _to_copy to lift_fresh dropout dropout_ native_dropout feature_dropout "
            "zeros_like ones_like empty_like rand_like randn_like full_like",
        ),
        (moved, "permute transpose t swapaxes swapdims movedim flip"),
        (expanded, "expand"),
        (repeated, "repeat"),
        (reshaped, "view _unsafe_view reshape flatten unflatten squeeze unsqueeze"),
        (cut_out, "slice narrow select"),
        (parted, "chunk split split_with_sizes tensor_split unbind"),
        (concatenated, "cat concat stack"),
        (padded, "constant_pad_nd"),
        (
            over_positions,
            "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d "
            "adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d "
            "max_pool2d_with_indices upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d "
            "upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d _upsample_nearest_exact1d "
            "_upsample_nearest_exact2d _upsample_nearest_exact3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa "
            "reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d",
        ),
        (reduced, "mean sum amax amin var std"),
        (shuffled, "pixel_shuffle channel_shuffle"),
    )
    for packet in _packets(names)
}
