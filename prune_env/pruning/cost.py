"""What a plan costs, computed from channel counts without building a network.

MACs are multiply-accumulates of convolution and linear layers for one input. Biases, BatchNorm, activations and pooling
are not counted, nor are operations that use a layer's parameters without calling the layer. FLOPs are 2 x MACs.
Letters: G groups, L layers, D = G + 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from .copies import shared_copy, uncompiled
from .errors import PruningError
from .forward import Example, first_input, inputs_for
from .groups import Plan, PruningGroup, Side
from .modules import channels, spec_of

Integers = NDArray[np.int64]


class Cost:
    """MACs and parameters of any plan, exact and in microseconds.

    Every channel count is a linear function of the plan, so a layer's cost is a product of two linear functions, and
    the network's cost is a quadratic form. Plans may be arrays [..., G]; results then have the leading axes.

    Example:
        >>> cost = Cost(model, groups, images)
        >>> cost.macs((8, 12, 4)), cost.params((8, 12, 4))
    """

    layers: tuple[str, ...]
    """Paths of the L convolution and linear layers, in forward order."""

    def __init__(self, model: nn.Module, groups: Sequence[PruningGroup], example_input: Example) -> None:
        """Run a copy of the network once to find the sizes of its feature maps.

        Args:
            model: The network, which does not change.
            groups: Its pruning groups.
            example_input: float [B, C, H, W], or a sequence of tensors for a network with several inputs.

        Raises:
            PruningError: The network calls no convolution or linear layer.
        """
        self._groups = len(groups)
        modules = dict(uncompiled(model).named_modules())
        positions = _positions(model, example_input)
        if not any(positions.values()):
            raise PruningError("the network calls no convolution or linear layer, so it has no cost to compute")
        self.layers = tuple(positions)
        count = _ChannelCounts(modules, groups)
        layers: list[Any] = [modules[path] for path in self.layers]
        self._outputs = np.stack([count(path, "out") for path in self.layers])  # [L, D]
        self._inputs = np.stack([count.inputs(path) for path in self.layers])  # [L, D]
        # Channels that one filter reads: those of the input, or a constant number in a convolution with groups.
        self._reads = self._inputs.copy()
        for row, layer in enumerate(layers):
            if getattr(layer, "groups", 1) > 1:
                self._reads[row] = count.constant(layer.in_channels // layer.groups)
        kernels = [int(np.prod(getattr(layer, "kernel_size", 1))) for layer in layers]
        self._unit = np.array(kernels) * list(positions.values())  # MACs for each pair of input and output channel
        self._macs = np.einsum("l,ld,le->de", self._unit, self._reads, self._outputs)  # [D, D]
        self._params = count.parameters()
        full = tuple(group.filters for group in groups)
        rest = sum(parameter.numel() for parameter in model.parameters()) - self.params(full)
        self._params[0, 0] += rest  # parameters of modules that no plan changes

    @overload
    def macs(self, plan: Plan) -> int: ...
    @overload
    def macs(self, plan: Integers) -> Integers: ...
    def macs(self, plan: Plan | Integers) -> int | Integers:
        """Return the multiply-accumulates for one input: an int for a plan, int64 [...] for an array of plans."""
        return self._quadratic(self._macs, plan)

    @overload
    def params(self, plan: Plan) -> int: ...
    @overload
    def params(self, plan: Integers) -> Integers: ...
    def params(self, plan: Plan | Integers) -> int | Integers:
        """Return the number of all parameters: an int for a plan, int64 [...] for an array of plans."""
        return self._quadratic(self._params, plan)

    def layer_macs(self, plan: Plan | Integers) -> Integers:
        """Return the multiply-accumulates of every layer, int64 [..., L]."""
        x = self._homogeneous(plan)
        return self._unit * (x @ self._reads.T) * (x @ self._outputs.T)

    def macs_slopes(self, plan: Plan | Integers) -> Integers:
        """Return n * dMACs/dn for the filters n of every group, int64 [..., G].

        That is what the group's filters cost where they are made and where they are read. A layer that both makes and
        reads them counts twice.
        """
        x = self._homogeneous(plan)
        return ((x @ (self._macs + self._macs.T)) * x)[..., 1:]

    def layer_channels(self, plan: Plan | Integers) -> tuple[Integers, Integers]:
        """Return input and output channels of every layer, int64 [..., L] each."""
        x = self._homogeneous(plan)
        return x @ self._inputs.T, x @ self._outputs.T

    def _quadratic(self, form: Integers, plan: Plan | Integers) -> Any:
        x = self._counts(plan)
        linear = form[0, 1:] + form[1:, 0]
        if x.ndim == 1:
            return int(form[0, 0] + (linear + form[1:, 1:] @ x) @ x)
        return form[0, 0] + ((linear + x @ form[1:, 1:]) * x).sum(-1)

    def _homogeneous(self, plan: ArrayLike) -> Integers:
        """(1, plan), int64 [..., D]."""
        counts = self._counts(plan)
        x = np.ones((*counts.shape[:-1], self._groups + 1), np.int64)
        x[..., 1:] = counts
        return x

    def _counts(self, plan: ArrayLike) -> Integers:
        counts = np.asarray(plan, np.int64)
        if counts.shape[-1:] != (self._groups,):
            raise ValueError(
                f"plans have shape [..., {self._groups}], a filter count for each group; got {counts.shape}"
            )
        return counts


class _ChannelCounts:
    """Channel counts as linear functions of a plan: coefficients [D] of (1, plan)."""

    def __init__(self, modules: dict[str, nn.Module], groups: Sequence[PruningGroup]) -> None:
        self._modules = modules
        self._full = np.array([group.filters for group in groups], np.int64)
        self._slopes: dict[tuple[str, Side], Integers] = {}  # channels that are removed with one filter of each group
        for number, group in enumerate(groups):
            for member in group.members:
                slope = self._slopes.setdefault((member.module, member.side), np.zeros(len(groups), np.int64))
                slope[number] += member.index.shape[1]

    def __call__(self, path: str, side: Side) -> Integers:
        slope = self._slopes.get((path, side), np.zeros_like(self._full))
        return np.concatenate(([channels(self._modules[path], side) - slope @ self._full], slope))

    def constant(self, value: int) -> Integers:
        """A count that does not depend on the plan."""
        return np.concatenate(([value], np.zeros_like(self._full)))

    def inputs(self, path: str) -> Integers:
        """Input channels of a layer; those of a convolution with groups are removed with its filters."""
        layer: Any = self._modules[path]
        if getattr(layer, "groups", 1) > 1:
            return self(path, "out") * layer.in_channels // layer.out_channels
        return self(path, "in")

    def parameters(self) -> Integers:
        """Number of the parameters that some plan changes, as a quadratic form [D, D]."""
        form = np.zeros((len(self._full) + 1,) * 2, np.int64)
        for path in dict.fromkeys(path for path, _ in self._slopes):
            module = self._modules[path]
            spec = spec_of(module)
            assert spec is not None, "groups contain registered modules only"
            for name, parameter in module.named_parameters(recurse=False):
                sides = [side for side in spec.tensors.get(name, ()) if side is not None]
                counts = [self(path, side) for side in sides] + [self.constant(1)] * (2 - len(sides))
                elements = parameter.numel() // int(np.prod([channels(module, side) for side in sides]))
                form += elements * np.outer(*counts)
        return form


def _positions(model: nn.Module, example_input: Example) -> dict[str, int]:
    """Path of a convolution or linear layer -> positions at which each filter is applied, summed over its calls.

    In forward order; layers that never run come last, with 0. A transposed convolution is applied to its input.
    """
    copy = shared_copy(model).eval()
    inputs = inputs_for(copy, example_input)
    positions: dict[str, int] = {}

    def record(path: str, module: Any, args: Any, kwargs: Any, output: torch.Tensor) -> None:
        if isinstance(module, _ConvTransposeNd):
            count = first_input(args, kwargs).numel() // (len(inputs[0]) * module.in_channels)
        else:
            count = output.numel() // (len(inputs[0]) * channels(module, "out"))
        positions[path] = positions.get(path, 0) + count

    paths = [path for path, module in copy.named_modules() if isinstance(module, (_ConvNd, nn.Linear))]
    for path in paths:
        copy.get_submodule(path).register_forward_hook(partial(record, path), with_kwargs=True)
    with torch.no_grad():
        copy(*inputs)
    return positions | {path: 0 for path in paths if path not in positions}
