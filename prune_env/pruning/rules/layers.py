"""Rules of the operations that layers run: convolutions, linear layers and normalisations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..groups import named
from ..labels import aligned
from ..trace import Trace
from .registry import Call, rule

aten = torch.ops.aten


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
        trace.freeze(images, reason or f"{named(path)} calls a convolution and is not one")
        return
    axis = images.ndim - 1 - len(module.kernel_size)
    inputs = trace.along(images, axis, f"{named(path)} reads them at different positions")
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
        trace.freeze(features, reason or f"{named(path)} calls a linear operation and is not a linear layer")
        return
    inputs = trace.along(features, -1, f"{named(path)} reads them at different positions")
    outputs = trace.produce(path, module.out_features)
    if reason is not None:
        trace.freeze(features, reason)
        trace.labels.freeze(outputs, reason)
    else:
        trace.read(path, "in", torch.zeros(module.in_features, dtype=torch.long) if inputs is None else inputs)
    if features.ndim > 2:
        trace.pointwise.add(path)
    trace[call.output] = aligned(outputs, call.output.ndim)


@rule(aten.batch_norm, aten.instance_norm, aten.prelu)
def by_channel(trace: Trace, call: Call) -> None:
    """Read channels along dimension 1, for which the layer has parameters or statistics, and keep their labels."""
    images = call.input
    tensors = [tensor for tensor in call.args[1:] if isinstance(tensor, torch.Tensor)]
    if call.operation == aten.prelu and tensors[0].numel() == 1:
        tensors = []
    if tensors:
        path, reason = trace.owner(*tensors)
        channels = trace.along(images, 1, f"{named(path)} reads them at different positions")
        if reason is not None:
            trace.freeze(images, reason)
        elif channels is not None:
            trace.read(path, "out", channels)
    trace[call.result] = trace[images]


@rule(aten.group_norm)
def by_group(trace: Trace, call: Call) -> None:
    """Tie the channels that a GroupNorm normalises together, so that whole groups are removed."""
    images, groups = call.input, call.args[1]
    path, reason = trace.owner(call.argument(2, "weight"), call.argument(3, "bias"))
    channels = trace.along(images, 1, f"{named(path)} reads them at different positions")
    if channels is None:
        return
    if groups == 1 or not isinstance(trace.modules[path], nn.GroupNorm):  # or the number of groups is in the code
        reason = f"group_norm in {named(path)} normalises across them"
    if reason is not None:
        trace.labels.freeze(channels, reason)
        return
    parts = channels.view(groups, -1)
    trace.labels.tie(parts, parts[:, :1])
    trace.read(path, "out", channels)
    trace[call.result] = trace[images]


@rule(aten.layer_norm, aten.softmax, aten.log_softmax, aten._softmax, aten._log_softmax)
def normalised_over(trace: Trace, call: Call) -> None:
    """Freeze channels that are normalised together: removing some would change the values of the others."""
    images = call.input
    labels = trace.labels_of(images)
    if call.operation == aten.layer_norm:
        axes: Sequence[int] = range(-len(call.args[1]), 0)
    else:
        axes = (call.args[1],)
    if any(labels.shape[axis] > 1 for axis in axes):
        where = f" in {trace.running}" if trace.running else ""
        trace.labels.freeze(labels, f"{call.operation.__name__}{where} normalises across them")
        trace[call.output] = None
    else:
        trace[call.output] = labels
