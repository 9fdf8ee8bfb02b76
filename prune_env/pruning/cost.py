"""What a plan costs, from integer channel counts alone: no network is built.

MACs are multiply-accumulates of convolution and linear layers for one input; biases, BatchNorm, activations and
pooling are free, and FLOPs are 2 x MACs. What uses a layer's parameters without calling the layer is not counted.
Letters: G groups, L layers, D = G + 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from .copies import PruningError, twin
from .groups import Plan, PruningGroup
from .surgery import Side, channels, first_input
from .trace import Example, inputs_for

Integers = NDArray[np.int64]


class Cost:
    """MACs and parameters of any plan, exact and in microseconds.

    Every channel count is linear in the plan, so that a layer's cost is a product of two linear functions, and the
    network's a quadratic form. Plans may be arrays [..., G]; results then have the leading axes.
    """

    layers: tuple[str, ...]
    """Paths of the L convolution and linear layers, in forward order."""

    def __init__(self, model: nn.Module, groups: Sequence[PruningGroup], example_input: Example) -> None:
        """example_input: float [B, C, H, W], or several inputs; a forward pass of a copy gives feature map sizes."""
        self._groups = len(groups)
        modules = dict(model.named_modules())
        positions = _positions(model, example_input)
        self.layers = tuple(positions)
        if not any(positions.values()):
            raise PruningError("the network calls no convolution or linear layer; there is nothing to count")
        slopes = _slopes(groups)
        full = np.array([group.filters for group in groups], np.int64)

        def linear(path: str, side: Side) -> Integers:
            """Coefficients [D] of a channel count in (1, plan)."""
            slope = slopes.get((path, side), np.zeros(len(groups), np.int64))
            return np.concatenate(([channels(modules[path], side) - slope @ full], slope))

        layers = [modules[path] for path in self.layers]
        self._inputs = np.stack([linear(path, "in") for path in self.layers])  # [L, D]
        self._outputs = np.stack([linear(path, "out") for path in self.layers])  # [L, D]
        for row, (path, layer) in enumerate(zip(self.layers, layers, strict=True)):
            if isinstance(layer, _ConvNd) and layer.groups > 1:  # whole groups go: the two sides shrink alike
                self._inputs[row] = linear(path, "out") * layer.in_channels // layer.out_channels
        # What one filter reads of one position; a convolution in `groups` parts reads a constant slice of its inputs.
        one = np.eye(1, len(groups) + 1, dtype=np.int64)[0]
        reads = np.stack(
            [
                one * (layer.in_channels // layer.groups) if isinstance(layer, _ConvNd) and layer.groups > 1 else inputs
                for layer, inputs in zip(layers, self._inputs, strict=True)
            ]
        )
        kernels = np.array([_kernel_size(layer) for layer in layers])
        self._unit = kernels * np.array([positions[path] for path in self.layers])  # MACs per input and output channel
        self._reads = reads
        self._macs = np.einsum("l,ld,le->de", self._unit, reads, self._outputs)  # [D, D]
        self._params = np.einsum("l,ld,le->de", kernels, reads, self._outputs)
        # Parameters that go with one output channel (biases, BatchNorm), and those of modules that nothing cuts.
        for path, module in modules.items():
            vectors = _vectors(module)
            if vectors and (path, "out") in slopes:
                self._params[0] += vectors * linear(path, "out")
        rest = sum(parameter.numel() for parameter in model.parameters()) - self._quadratic(self._params, full)
        self._params[0, 0] += rest

    @overload
    def macs(self, plan: Plan) -> int: ...
    @overload
    def macs(self, plan: Integers) -> Integers: ...
    def macs(self, plan: Plan | Integers) -> int | Integers:
        """Multiply-accumulates for one input: an int for a plan, an int64 array [...] for an array of plans."""
        return self._quadratic(self._macs, plan)

    @overload
    def params(self, plan: Plan) -> int: ...
    @overload
    def params(self, plan: Integers) -> Integers: ...
    def params(self, plan: Plan | Integers) -> int | Integers:
        """All parameters, biases and BatchNorm included: an int for a plan, an int64 array [...] for an array."""
        return self._quadratic(self._params, plan)

    def layer_macs(self, plan: Plan | Integers) -> Integers:
        """Multiply-accumulates of every layer: int64 [..., L]."""
        x = self._homogeneous(plan)
        return self._unit * (x @ self._reads.T) * (x @ self._outputs.T)

    def layer_channels(self, plan: Plan | Integers) -> tuple[Integers, Integers]:
        """Input and output channels of every layer: int64 [..., L] each."""
        x = self._homogeneous(plan)
        return x @ self._inputs.T, x @ self._outputs.T

    def _quadratic(self, form: Integers, plan: Plan | Integers) -> Any:
        x = self._counts(plan)
        linear = form[0, 1:] + form[1:, 0]
        if x.ndim == 1:
            return int(form[0, 0] + (linear + form[1:, 1:] @ x) @ x)
        return form[0, 0] + ((linear + x @ form[1:, 1:]) * x).sum(-1)

    def _homogeneous(self, plan: ArrayLike) -> Integers:
        """(1, plan): int64 [..., D]."""
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


def _slopes(groups: Sequence[PruningGroup]) -> dict[tuple[str, Side], Integers]:
    """(path, side) -> channels that go with one filter of each group, [G]."""
    slopes: dict[tuple[str, Side], Integers] = {}
    for number, group in enumerate(groups):
        for member in group.members:
            row = slopes.setdefault((member.module, member.side), np.zeros(len(groups), np.int64))
            row[number] += member.index.shape[1]
    return slopes


def _kernel_size(layer: nn.Module) -> int:
    return int(np.prod(layer.kernel_size)) if isinstance(layer, _ConvNd) else 1


def _vectors(module: nn.Module) -> int:
    """How many parameters go with one output channel, the convolution's and linear layer's own weights apart."""
    counted = isinstance(module, (_ConvNd, nn.Linear))
    return sum(
        parameter is not None and not (counted and name == "weight") for name, parameter in module._parameters.items()
    )


def _positions(model: nn.Module, example_input: Example) -> dict[str, int]:
    """Path of every convolution and linear layer -> positions at which each filter is applied, summed over calls.

    In forward order; layers that never run come last, with 0. A transposed convolution is applied to its input.
    """
    copy = twin(model).eval()
    positions: dict[str, int] = {}
    names: dict[nn.Module, str] = {
        module: path for path, module in copy.named_modules() if isinstance(module, (_ConvNd, nn.Linear))
    }
    inputs = inputs_for(copy, example_input)

    def record(module: nn.Module, args: Any, kwargs: Any, output: torch.Tensor) -> None:
        if isinstance(module, _ConvTransposeNd):
            count = first_input(args, kwargs).numel() // (len(inputs[0]) * module.in_channels)
        else:
            count = output.numel() // (len(inputs[0]) * channels(module, "out"))
        positions[names[module]] = positions.get(names[module], 0) + count

    for module in names:
        module.register_forward_hook(record, with_kwargs=True)
    with torch.no_grad():
        copy(*inputs)
    return positions | {path: 0 for path in names.values() if path not in positions}
