"""What each operation does to labels: a rule for every kind of operation.

A rule is a function of the trace and one call; it sets the labels of the call's output. Where cutting filters would
change the result of an operation in another way than masking them, the rule freezes the filters, and the output has no
labels. An operation without a rule freezes all filters that it reads. Label tensors have length 1 along dimensions in
which they do not change, see `labels.py`.

Example:
    A rule for an operation of your own that does not mix channels:

    >>> @rule(torch.ops.my_library.blur)
    ... def blur(trace: Trace, call: Call) -> None:
    ...     trace[call.result] = trace[call.input]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from .trace import Trace

aten = torch.ops.aten


class Call(NamedTuple):
    """One call of an operation."""

    func: Any
    """The operation, an overload of torch.ops."""
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    output: Any
    """What it returned."""

    @property
    def input(self) -> Any:
        """The first argument."""
        return self.args[0]

    @property
    def result(self) -> torch.Tensor:
        """The output, or its first tensor."""
        result: torch.Tensor = self.output[0] if isinstance(self.output, tuple) else self.output
        return result

    @property
    def operation(self) -> Any:
        """The operation without the overload, as in torch.ops.aten.cat."""
        return self.func.overloadpacket

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """Return an argument that may be given by position or by name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)


class Rule(NamedTuple):
    """A rule and when it applies."""

    apply: Callable[[Trace, Call], None]
    all_operands: bool
    """Whether it handles the labels of all operands. Otherwise those of the first one only; the others are frozen."""
    without_labels: bool
    """Whether it applies even if no operand has labels."""


RULES: dict[Any, Rule] = {}
"""Operation -> its rule."""


def rule(
    *operations: Any, all_operands: bool = False, without_labels: bool = False
) -> Callable[[Callable[[Trace, Call], None]], Callable[[Trace, Call], None]]:
    """Return a decorator that makes a function the rule of some operations.

    Args:
        *operations: Operations without an overload, such as torch.ops.aten.cat.
        all_operands: Whether the rule handles the labels of all operands. Otherwise it handles those of the first
            operand; labels of other operands are frozen before the call.
        without_labels: Whether the rule applies even if no operand has labels, because it creates new ones.

    Raises:
        ValueError: An operation already has a rule.
    """

    def register(function: Callable[[Trace, Call], None]) -> Callable[[Trace, Call], None]:
        for operation in operations:
            if operation in RULES:
                raise ValueError(f"operation {operation} already has a rule")
            RULES[operation] = Rule(function, all_operands, without_labels)
        return function

    return register


def rule_of(func: Any) -> Rule | None:
    """Return the rule of an operation (an overload), None if it has none."""
    tagged = torch.Tag.pointwise in func.tags
    return RULES.get(func.overloadpacket) or (ELEMENTWISE if tagged else None)


# Elementwise operations that torch does not tag as such; `rule_of` finds the others by their tag.
@rule(
    aten.copy_,
    aten.hardswish,
    aten.hardswish_,
    aten.hardtanh_,
    aten.leaky_relu_,
    aten.elu_,
    aten.selu_,
    aten.celu_,
    aten.clamp_,
    aten.masked_fill,
    aten.where,
    all_operands=True,
)
def elementwise(trace: Trace, call: Call) -> None:
    """Tie the labels of operands that vary along the same dimension, element by element."""
    output = call.output
    operands = [leaf for leaf in tree_leaves((call.args, call.kwargs)) if isinstance(leaf, torch.Tensor)]
    aligned = {id(t): _aligned(labels, output.ndim) for t in operands if (labels := trace[t]) is not None}
    lengths = [max(labels.shape[axis] for labels in aligned.values()) for axis in range(output.ndim)]
    joint = torch.zeros([1] * output.ndim, dtype=torch.long)
    for tensor in operands:
        shape = [1] * (output.ndim - tensor.ndim) + list(tensor.shape)
        labels = aligned.get(id(tensor))
        if labels is None:
            if any(n > 1 and length > 1 for n, length in zip(lengths, shape, strict=True)):
                name = trace.name(tensor)
                reason = f"they are combined with {f'the parameter {name}' if name else 'a tensor'} outside a layer"
                for other in aligned.values():
                    trace.labels.freeze(other, reason)
        elif any(n > 1 and length == 1 for n, length in zip(lengths, shape, strict=True)):
            trace.labels.freeze(labels, "they are broadcast over the channels of other layers")
        else:
            if bool((joint > 0).any()):
                trace.labels.tie(joint, labels)
            joint = torch.where(joint > 0, joint, labels)
    trace[output] = joint if bool((joint > 0).any()) else None


ELEMENTWISE = Rule(elementwise, all_operands=True, without_labels=False)
"""The rule of all operations that torch tags as elementwise."""


@rule(
    aten.conv1d,
    aten.conv2d,
    aten.conv3d,
    aten.conv_transpose1d,
    aten.conv_transpose2d,
    aten.conv_transpose3d,
    without_labels=True,
)
def convolution(trace: Trace, call: Call) -> None:
    """Read the input's channels and create labels for the filters.

    In a grouped convolution, the filters of a group and the channels that they read are tied to each other.
    """
    images = call.input
    path, reason = trace.owner(call.args[1], call.argument(2, "bias"))
    module: Any = trace.modules.get(path)
    if not isinstance(module, nn.modules.conv._ConvNd):
        trace.freeze(images, reason or f"{path} calls a convolution and is not one")
        return
    axis = images.ndim - 1 - len(module.kernel_size)
    inputs = trace.along(images, axis, f"{path} reads them at different positions")
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
    trace[call.output] = filters.view([-1 if d == axis else 1 for d in range(images.ndim)])


@rule(aten.linear, without_labels=True)
def linear(trace: Trace, call: Call) -> None:
    """Treat a linear layer like a 1x1 convolution along the last dimension."""
    features = call.input
    path, reason = trace.owner(call.args[1], call.argument(2, "bias"))
    module = trace.modules.get(path)
    if not isinstance(module, nn.Linear):
        trace.freeze(features, reason or f"{path} calls a linear operation and is not a linear layer")
        return
    inputs = trace.along(features, -1, f"{path} reads them at different positions")
    outputs = trace.produce(path, module.out_features)
    if reason is not None:
        trace.freeze(features, reason)
        trace.labels.freeze(outputs, reason)
    else:
        trace.read(path, "in", torch.zeros(module.in_features, dtype=torch.long) if inputs is None else inputs)
    if features.ndim > 2:
        trace.pointwise.add(path)
    trace[call.output] = _aligned(outputs, call.output.ndim)


@rule(aten.batch_norm, aten.instance_norm, aten.prelu)
def by_channel(trace: Trace, call: Call) -> None:
    """Read channels along dimension 1, for which the layer has parameters or statistics, and keep their labels."""
    images = call.input
    tensors = [tensor for tensor in call.args[1:] if isinstance(tensor, torch.Tensor)]
    if call.operation == aten.prelu and tensors[0].numel() == 1:
        tensors = []
    if tensors:
        path, reason = trace.owner(*tensors)
        channels = trace.along(images, 1, f"{path} reads them at different positions")
        if reason is not None:
            trace.freeze(images, reason)
        elif channels is not None:
            trace.read(path, "out", channels)
    trace[call.result] = trace[images]


@rule(aten.layer_norm, aten.group_norm, aten.softmax, aten.log_softmax, aten._softmax, aten._log_softmax)
def normalised_over(trace: Trace, call: Call) -> None:
    """Freeze channels that are normalised together: removing some would change the values of the others."""
    images = call.input
    labels = _labels(trace, images)
    if call.operation == aten.layer_norm:
        axes: Sequence[int] = range(-len(call.args[1]), 0)
    elif call.operation == aten.group_norm:
        axes = range(1, images.ndim)
    else:
        axes = (call.args[1],)
    if any(labels.shape[axis] > 1 for axis in axes):
        where = f" in {trace.running}" if trace.running else ""
        trace.labels.freeze(labels, f"{call.operation.__name__}{where} normalises across them")
        trace[call.output] = None
    else:
        trace[call.output] = labels


@rule(
    aten.clone,
    aten.contiguous,
    aten.detach,
    aten.alias,
    aten._to_copy,
    aten.to,
    aten.lift_fresh,
    aten.dropout,
    aten.dropout_,
    aten.native_dropout,
    aten.feature_dropout,
    aten.zeros_like,
    aten.ones_like,
    aten.empty_like,
    aten.rand_like,
    aten.randn_like,
    aten.full_like,
)
def same(trace: Trace, call: Call) -> None:
    """Keep the labels in copies, in new tensors of the same shape and in dropout."""
    trace[call.result] = trace[call.input]


@rule(aten.permute, aten.transpose, aten.t, aten.swapaxes, aten.swapdims, aten.movedim, aten.flip)
def moved(trace: Trace, call: Call) -> None:
    """Apply an operation that exchanges or flips dimensions to the labels."""
    trace[call.output] = call.func(trace[call.input], *call.args[1:], **call.kwargs)


@rule(aten.expand)
def expanded(trace: Trace, call: Call) -> None:
    """Keep length 1 in the labels of an expanded tensor: all copies come from the same filter."""
    trace[call.output] = _aligned(_labels(trace, call.input), call.output.ndim)


@rule(aten.repeat)
def repeated(trace: Trace, call: Call) -> None:
    """Repeat labels along the dimensions in which they change."""
    labels = _aligned(_labels(trace, call.input), call.output.ndim)
    trace[call.output] = labels.repeat(
        [times if n > 1 else 1 for times, n in zip(call.args[1], labels.shape, strict=True)]
    )


@rule(aten.view, aten._unsafe_view, aten.reshape, aten.flatten, aten.unflatten, aten.squeeze, aten.unsqueeze)
def reshaped(trace: Trace, call: Call) -> None:
    """Reshape labels like the tensor.

    Merging dimensions is always correct. Splitting the channels into parts requires that every part loses the same
    channels, so filter i of each part is tied.
    """
    tensor, output = call.input, call.output
    labels = _labels(trace, tensor)
    full, target = list(labels.shape), [1] * output.ndim
    for inner, outer in _blocks(tensor.shape, output.shape):
        varying = [axis for axis in inner if labels.shape[axis] > 1]
        if not varying:
            continue
        lengths = [output.shape[axis] for axis in outer if output.shape[axis] > 1]
        if len(lengths) > 1:
            if len([axis for axis in inner if tensor.shape[axis] > 1]) > 1 or len(lengths) > 2:
                trace.labels.freeze(labels, "a reshape splits their channels over several dimensions")
                trace[output] = None
                return
            parts = labels.movedim(varying[0], 0).unflatten(0, lengths)  # [parts, length, ...]
            trace.labels.tie(parts, parts[:1])
        for axis in inner:
            full[axis] = tensor.shape[axis]
        for axis in outer:
            target[axis] = output.shape[axis]
    trace[output] = labels.expand(full).reshape(target)


@rule(aten.slice, aten.narrow, aten.select)
def sliced(trace: Trace, call: Call) -> None:
    """Keep labels in a slice of positions; freeze channels that are sliced, because the bounds are fixed numbers."""
    labels = _labels(trace, call.input)
    axis = call.argument(1, "dim", 0)
    drops = call.output.ndim < call.input.ndim
    if labels.shape[axis] == 1:
        trace[call.output] = labels.squeeze(axis) if drops else labels
    elif call.output.shape == call.input.shape:
        trace[call.output] = labels
    else:
        trace.labels.freeze(labels, "they pass through a slice of the channels with fixed bounds")


@rule(aten.chunk, aten.split, aten.split_with_sizes, aten.tensor_split, aten.unbind)
def split(trace: Trace, call: Call) -> None:
    """Tie filter i of all parts of a split into equal parts; freeze the channels of any other split."""
    labels = _labels(trace, call.input)
    unbinds = call.operation == aten.unbind
    axis = call.argument(1 if unbinds else 2, "dim", 0)
    if labels.shape[axis] == 1:
        for part in call.output:
            trace[part] = labels.squeeze(axis) if unbinds else labels
    elif unbinds or len({part.shape[axis] for part in call.output}) > 1:
        trace.labels.freeze(labels, "they pass through a split into parts of fixed sizes")
    else:
        parts = labels.chunk(len(call.output), axis)
        for part, piece in zip(call.output, parts, strict=True):
            trace.labels.tie(parts[0], piece)
            trace[part] = piece


@rule(aten.cat, aten.concat, aten.stack, all_operands=True)
def concatenated(trace: Trace, call: Call) -> None:
    """Concatenate the labels, with 0 for tensors that have none."""
    output = call.output
    tensors, axis = call.input, call.argument(1, "dim", 0) % output.ndim
    if call.operation == aten.stack:
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


@rule(aten.constant_pad_nd)
def padded(trace: Trace, call: Call) -> None:
    """Keep labels where positions are padded; pad them with 0 where channels are."""
    labels = _labels(trace, call.input)
    pads = list(call.args[1])
    for number in range(len(pads) // 2):
        if labels.shape[-1 - number] == 1:
            pads[2 * number : 2 * number + 2] = 0, 0
    trace[call.output] = nn.functional.pad(labels, pads)


@rule(
    aten.max_pool1d,
    aten.max_pool2d,
    aten.max_pool3d,
    aten.avg_pool1d,
    aten.avg_pool2d,
    aten.avg_pool3d,
    aten.adaptive_avg_pool1d,
    aten.adaptive_avg_pool2d,
    aten.adaptive_avg_pool3d,
    aten.adaptive_max_pool1d,
    aten.adaptive_max_pool2d,
    aten.adaptive_max_pool3d,
    aten.max_pool2d_with_indices,
    aten.upsample_nearest1d,
    aten.upsample_nearest2d,
    aten.upsample_nearest3d,
    aten.upsample_linear1d,
    aten.upsample_bilinear2d,
    aten.upsample_bicubic2d,
    aten.upsample_trilinear3d,
    aten._upsample_nearest_exact1d,
    aten._upsample_nearest_exact2d,
    aten._upsample_nearest_exact3d,
    aten._upsample_bilinear2d_aa,
    aten._upsample_bicubic2d_aa,
    aten.reflection_pad1d,
    aten.reflection_pad2d,
    aten.reflection_pad3d,
    aten.replication_pad1d,
    aten.replication_pad2d,
    aten.replication_pad3d,
)
def over_positions(trace: Trace, call: Call) -> None:
    """Keep labels in pooling, interpolation and padding, which run over the last one, two or three dimensions."""
    labels = _labels(trace, call.input)
    spatial = next(int(digit) for digit in call.operation.__name__ if digit in "123")
    if any(length > 1 for length in labels.shape[-spatial:]):
        trace.labels.freeze(labels, f"{call.operation} runs along them")
        return
    trace[call.result] = labels


@rule(aten.mean, aten.sum, aten.amax, aten.amin, aten.var, aten.std)
def reduced(trace: Trace, call: Call) -> None:
    """Keep labels in reductions over positions; freeze channels that are reduced."""
    tensor = call.input
    labels = _labels(trace, tensor)
    axes = call.argument(1, "dim")
    axes = range(tensor.ndim) if axes is None or axes == [] else [axes] if isinstance(axes, int) else axes
    axes = sorted({axis % tensor.ndim for axis in axes})
    if any(labels.shape[axis] > 1 for axis in axes):
        trace.labels.freeze(labels, f"they pass through {call.operation} over the channels")
        return
    kept = [n for axis, n in enumerate(labels.shape) if axis not in axes or call.result.ndim == tensor.ndim]
    trace[call.result] = labels.reshape(kept)


@rule(aten.pixel_shuffle, aten.channel_shuffle)
def shuffled(trace: Trace, call: Call) -> None:
    """Tie channels that a shuffle between groups (ShuffleNet), or from channels to positions, keeps in step."""
    tensor, parts = call.input, call.args[1]
    labels = trace.along(tensor, -3, f"{call.operation} separates their positions")
    if labels is None:
        return
    if call.operation == aten.pixel_shuffle:
        rows = labels.view(-1, parts * parts)
        trace.labels.tie(rows, rows[:, :1])
        labels = rows[:, 0]
    else:
        rows = labels.view(parts, -1)
        trace.labels.tie(rows, rows[:1])
        labels = rows.T.flatten()
    trace[call.output] = _aligned(labels.view(-1, 1, 1), call.output.ndim)


def _labels(trace: Trace, tensor: torch.Tensor) -> torch.Tensor:
    labels = trace[tensor]
    assert labels is not None, "rules without `without_labels` are called for labelled tensors"
    return labels


def _aligned(labels: torch.Tensor, dimensions: int) -> torch.Tensor:
    """The labels with as many dimensions, added at the front as in broadcasting."""
    return labels.view(*[1] * (dimensions - labels.ndim), *labels.shape)


def _unsqueezed(trace: Trace, tensor: torch.Tensor, axis: int) -> torch.Tensor:
    result = tensor.unsqueeze(axis)
    labels = trace[tensor]
    trace[result] = None if labels is None else labels.unsqueeze(axis)
    return result


def _blocks(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Smallest sets of dimensions that a reshape maps to each other."""
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
