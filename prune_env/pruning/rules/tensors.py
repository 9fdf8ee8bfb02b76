"""Rules of the operations that combine, move, select and reduce elements of tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from ..labels import aligned
from ..modules import spec_of
from ..trace import Trace
from .registry import Call, rule

aten = torch.ops.aten


@rule(
    torch.Tag.pointwise,
    # Elementwise operations that torch does not tag as such:
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
    by_operand = {id(t): aligned(labels, output.ndim) for t in operands if (labels := trace[t]) is not None}
    lengths = [max(labels.shape[axis] for labels in by_operand.values()) for axis in range(output.ndim)]
    joint = torch.zeros([1] * output.ndim, dtype=torch.long)
    for tensor in operands:
        shape = [1] * (output.ndim - tensor.ndim) + list(tensor.shape)
        labels = by_operand.get(id(tensor))
        if labels is None:
            if any(n > 1 and length > 1 for n, length in zip(lengths, shape, strict=True)):
                name = trace.name(tensor)
                reason = f"they are combined with {f'the parameter {name}' if name else 'a tensor'} outside a layer"
                for other in by_operand.values():
                    trace.labels.freeze(other, reason)
        elif any(n > 1 and length == 1 for n, length in zip(lengths, shape, strict=True)):
            trace.labels.freeze(labels, "they are broadcast over the channels of other layers")
        else:
            if bool((joint > 0).any()):
                trace.labels.tie(joint, labels)
            joint = torch.where(joint > 0, joint, labels)
    trace[output] = joint if bool((joint > 0).any()) else None


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
    trace[call.output] = aligned(trace.labels_of(call.input), call.output.ndim)


@rule(aten.repeat)
def repeated(trace: Trace, call: Call) -> None:
    """Repeat labels along the dimensions in which they change."""
    labels = aligned(trace.labels_of(call.input), call.output.ndim)
    trace[call.output] = labels.repeat(
        [times if n > 1 else 1 for times, n in zip(call.args[1], labels.shape, strict=True)]
    )


@rule(aten.view, aten._unsafe_view, aten.reshape, aten.flatten, aten.unflatten, aten.squeeze, aten.unsqueeze)
def reshaped(trace: Trace, call: Call) -> None:
    """Reshape labels like the tensor.

    Merging dimensions is always correct. Splitting the channels into parts requires that every part loses the same
    channels, so filter i of each part is tied, unless each part has the channels of one filter. Channels that are split
    into the heads of an attention are tied to all others of their head.
    """
    tensor, output = call.input, call.output
    labels = trace.labels_of(tensor)
    full, target = list(labels.shape), [1] * output.ndim
    for inner, outer in _blocks(tensor.shape, output.shape):
        varying = [axis for axis in inner if labels.shape[axis] > 1]
        if not varying:
            continue
        lengths = [output.shape[axis] for axis in outer if output.shape[axis] > 1]
        if len(lengths) > 1:
            single = len([axis for axis in inner if tensor.shape[axis] > 1]) == 1
            parts = labels.movedim(varying[0], 0).unflatten(0, lengths) if single else None  # [parts, length, ...]
            if parts is not None and (heads := _heads(trace, lengths)) is not None:
                each = parts.movedim(heads, 0).flatten(1, len(lengths) - 1)  # [heads, channels of one, ...]
                trace.labels.tie(each, each[:, :1])
                _follow(trace, each[:, 0])
            elif parts is None or not _along_one(trace, parts, len(lengths)):
                if parts is None or len(lengths) > 2:
                    trace.labels.freeze(labels, "a reshape splits their channels over several dimensions")
                    trace[output] = None
                    return
                trace.labels.tie(parts, parts[:1])
        for axis in inner:
            full[axis] = tensor.shape[axis]
        for axis in outer:
            target[axis] = output.shape[axis]
    trace[output] = labels.expand(full).reshape(target)


@rule(aten.slice, aten.narrow, aten.select)
def sliced(trace: Trace, call: Call) -> None:
    """Keep labels in a slice of positions; freeze channels that are sliced, because the bounds are fixed numbers."""
    labels = trace.labels_of(call.input)
    axis = call.argument(1, "dim", 0)
    drops = call.output.ndim < call.input.ndim
    if labels.shape[axis] == 1:
        trace[call.output] = labels.squeeze(axis) if drops else labels
    elif call.output.shape == call.input.shape:
        trace[call.output] = labels
    else:
        trace.labels.freeze(labels, "they pass through a slice of the channels with fixed bounds")


@rule(aten.matmul, aten.bmm, all_operands=True)
def multiplied(trace: Trace, call: Call) -> None:
    """Tie the matrices of two batches, such as those of the heads of an attention; freeze rows and columns."""
    operands = call.args[:2]
    if any((labels := trace[tensor]) is not None and max(labels.shape[-2:]) > 1 for tensor in operands):
        for tensor in operands:
            trace.freeze(tensor, f"they pass through {call.operation}, which may mix them")
    else:
        elementwise(trace, call)


@rule(aten.scaled_dot_product_attention, all_operands=True)
def attention(trace: Trace, call: Call) -> None:
    """Tie the heads of queries, keys and values; freeze channels within the heads."""
    operands = call.args[:3]
    labels = [one for tensor in operands if (one := trace[tensor]) is not None and max(one.shape[-2:]) == 1]
    separate = len(labels) == len(operands) and len({one.shape for one in labels}) == 1
    for tensor in (call.argument(3, "attn_mask"), *(() if separate else operands)):
        trace.freeze(tensor, f"they pass through {call.operation}, which may mix them")
    if separate:
        trace.labels.tie(labels[0], labels[1])
        trace.labels.tie(labels[0], labels[2])
        trace[call.output] = labels[0]


@rule(aten.chunk, aten.split, aten.split_with_sizes, aten.tensor_split, aten.unbind)
def split(trace: Trace, call: Call) -> None:
    """Tie filter i of all parts of a split into equal parts; freeze the channels of any other split.

    Where the running module has an attribute for the length of a part or of the whole (`ModuleSpec.sizes`), the
    attribute follows.
    """
    labels = trace.labels_of(call.input)
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
        part = parts[0].movedim(axis, 0)
        _follow(trace, part if len(part) in _stored(trace) else labels.movedim(axis, 0))


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
    labels = trace.labels_of(call.input)
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
    aten._pad_circular,
    aten.grid_sampler_2d,
    aten.grid_sampler_3d,
)
def over_positions(trace: Trace, call: Call) -> None:
    """Keep labels in pooling, sampling, interpolation and padding, which run over the last one to three dimensions."""
    labels = trace.labels_of(call.input)
    digits = [int(digit) for digit in call.operation.__name__ if digit in "123"]
    spatial = digits[0] if digits else len(call.args[1]) // 2  # circular padding has one operation for all
    if any(length > 1 for length in labels.shape[-spatial:]):
        trace.labels.freeze(labels, f"{call.operation} runs along them")
        return
    trace[call.result] = labels


@rule(aten.mean, aten.sum, aten.amax, aten.amin, aten.var, aten.std)
def reduced(trace: Trace, call: Call) -> None:
    """Keep labels in reductions over positions; freeze channels that are reduced."""
    tensor = call.input
    labels = trace.labels_of(tensor)
    axes = call.argument(1, "dim")
    axes = range(tensor.ndim) if axes is None or axes == [] else [axes] if isinstance(axes, int) else axes
    axes = sorted({axis % tensor.ndim for axis in axes})
    if any(labels.shape[axis] > 1 for axis in axes):
        trace.labels.freeze(labels, f"they pass through {call.operation} over the channels")
        return
    kept = [n for axis, n in enumerate(labels.shape) if axis not in axes or call.result.ndim == tensor.ndim]
    trace[call.result] = labels.reshape(kept)


@rule(aten.glu)
def gated(trace: Trace, call: Call) -> None:
    """Tie the two halves of the channels of a gated linear unit, of which one is the other's gate."""
    labels = trace.labels_of(call.input)
    axis = call.argument(1, "dim", -1)
    if labels.shape[axis] > 1:
        labels, gates = labels.chunk(2, axis)
        trace.labels.tie(labels, gates)
    trace[call.output] = labels


@rule(aten.channel_shuffle)
def shuffled(trace: Trace, call: Call) -> None:
    """Tie channels that a shuffle between groups (ShuffleNet) keeps in step."""
    labels = trace.along(call.input, -3, f"{call.operation} separates their positions")
    if labels is not None:
        rows = labels.view(call.args[1], -1)
        trace.labels.tie(rows, rows[:1])
        trace[call.output] = aligned(rows.T.reshape(-1, 1, 1), call.output.ndim)


@rule(aten.pixel_shuffle, aten.col2im)
def to_positions(trace: Trace, call: Call) -> None:
    """Tie the channels that become positions of the same channel."""
    folds = call.operation == aten.col2im
    labels = trace.along(call.input, -2 if folds else -3, f"{call.operation} separates their positions")
    if labels is not None:
        rows = labels.view(call.output.shape[-3], -1)
        trace.labels.tie(rows, rows[:, :1])
        trace[call.output] = aligned(rows[:, 0].reshape(-1, 1, 1), call.output.ndim)


@rule(aten.pixel_unshuffle, aten.im2col)
def from_positions(trace: Trace, call: Call) -> None:
    """Repeat the label of a channel for all channels that its positions become."""
    labels = trace.along(call.input, -3, f"{call.operation} separates their positions")
    if labels is not None:
        axis = -2 if call.operation == aten.im2col else -3
        labels = labels.repeat_interleave(call.output.shape[axis] // len(labels))
        trace[call.output] = aligned(labels.view(-1, *[1] * (-1 - axis)), call.output.ndim)


@rule(aten.unfold)
def windows(trace: Trace, call: Call) -> None:
    """Keep labels in windows of positions, which are a new last dimension; freeze channels in windows."""
    labels = trace.labels_of(call.input)
    if labels.shape[call.argument(1, "dimension")] > 1:
        trace.labels.freeze(labels, f"{call.operation} takes windows of them")
    else:
        trace[call.output] = labels.unsqueeze(-1)


def _stored(trace: Trace) -> list[int]:
    """Numbers that the running module stores for its code, first that of its channels; see `ModuleSpec.sizes`."""
    module = trace.modules[trace.running]
    spec = spec_of(module)
    if spec is None or spec.traced_as_whole or spec.tensor_names:
        return []
    return [getattr(module, name) for name in spec.size_attributes]


def _follow(trace: Trace, labels: torch.Tensor) -> None:
    """Let the stored numbers of the running module follow channels that one of them counts.

    Args:
        trace: The trace.
        labels: Labels of the channels, or of heads of several channels each, along the first dimension.
    """
    numbers, length = _stored(trace), len(labels)
    if length in numbers and labels.numel() == length:
        trace.read(trace.running, "out", labels.flatten().repeat_interleave(numbers[0] // length))


def _heads(trace: Trace, lengths: Sequence[int]) -> int | None:
    """The dimension of the heads in a reshape to some lengths, None outside of an attention.

    The running module stores their number behind that of its channels, and the channels of a head are the last ones.
    """
    numbers = _stored(trace)[1:]
    return max((place for place, length in enumerate(lengths[:-1]) if length in numbers), default=None)


def _along_one(trace: Trace, parts: torch.Tensor, dimensions: int) -> bool:
    """Whether labels change along at most one of the first dimensions of a tensor."""
    return sum(length > 1 for length in trace.labels.compressed(parts).shape[:dimensions]) <= 1


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
