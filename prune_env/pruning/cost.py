"""MACs and parameters of a plan: analytic and exact.

Convention: multiply-accumulates of convolution and linear layers for one input; no bias, BatchNorm, activation or
pooling. FLOPs are twice that. A layer's channels on either side are a linear function of the plan, so its MACs are
coefficient * in(plan) * out(plan). Letters: G groups, L layers; a plan is [G], many plans are [..., G].
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from .groups import PruningGroup

Numbers = npt.NDArray[np.float64]


class Cost:
    """Costs of the plans of one network on inputs of one size."""

    def __init__(self, model: nn.Module, groups: Sequence[PruningGroup], example_input: torch.Tensor) -> None:
        positions = _output_positions(model, example_input)
        self.layers: tuple[str, ...] = tuple(positions)
        """Paths of the convolution and linear layers in forward order."""
        per_filter: defaultdict[tuple[str, str], Numbers] = defaultdict(lambda: np.zeros(len(groups)))
        for number, group in enumerate(groups):
            for member in group.members:
                per_filter[member.module, member.side][number] += member.index.shape[1]
        full = np.array([group.filters for group in groups], np.float64)

        def linear(name: str, side: str, channels: int) -> tuple[Numbers, float]:
            """Channels as slope @ plan + constant."""
            slope = per_filter[name, side]
            return slope, channels - float(slope @ full)

        rows = []
        for name in self.layers:
            module = model.get_submodule(name)
            if isinstance(module, nn.Conv2d):
                taps = module.kernel_size[0] * module.kernel_size[1]
                outs = linear(name, "out", module.out_channels)
                if module.groups == 1:
                    ins = linear(name, "in", module.in_channels)
                else:  # each filter reads a fixed number of channels, depthwise or grouped
                    ins = np.zeros(len(groups)), module.in_channels / module.groups
            else:
                assert isinstance(module, nn.Linear)
                taps = 1
                ins, outs = linear(name, "in", module.in_features), linear(name, "out", module.out_features)
            rows.append((*ins, *outs, taps * positions[name], taps, module.bias is not None))
        self._in, self._in_0, self._out, self._out_0, self._macs, self._taps, self._bias = (
            np.array(column, np.float64) for column in zip(*rows, strict=True)
        )
        # Every other parameter: BatchNorms shrink with their channels, the rest is constant.
        self._other, self._other_0 = np.zeros(len(groups)), 0.0
        for name, module in model.named_modules():
            if name in positions:
                continue
            own = [parameter.numel() for parameter in module.parameters(recurse=False)]
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d) and own:
                slope, constant = linear(name, "out", module.num_features)
                self._other = self._other + len(own) * slope
                self._other_0 += len(own) * constant
            else:
                self._other_0 += sum(own)

    def layer_macs(self, plan: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """MACs of every layer: [..., G] -> [..., L]."""
        ins, outs = self._channels(plan)
        return (self._macs * ins * outs).astype(np.int64)

    def macs(self, plan: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """MACs of the network: [..., G] -> [...]; one plan gives one integer."""
        ins, outs = self._channels(plan)
        return ((ins * outs) @ self._macs).astype(np.int64)  # exact: float64 holds integers below 2^53

    def params(self, plan: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Parameters of the network, biases and BatchNorm included: [..., G] -> [...]."""
        ins, outs = self._channels(plan)
        other = np.asarray(plan, np.float64) @ self._other + self._other_0
        return ((ins * outs) @ self._taps + outs @ self._bias + other).astype(np.int64)

    def _channels(self, plan: npt.ArrayLike) -> tuple[Numbers, Numbers]:
        """Input and output channels of every layer, [..., L] each."""
        plan = np.asarray(plan, np.float64)
        return plan @ self._in.T + self._in_0, plan @ self._out.T + self._out_0


def _output_positions(model: nn.Module, example_input: torch.Tensor) -> dict[str, int]:
    """Convolution and linear layers in forward order -> how many output positions each computes for one input."""
    model = copy.deepcopy(model).eval()
    positions: dict[str, int] = {}

    def watch(name: str, output: torch.Tensor) -> None:
        channels_last = output.shape[1] if output.ndim > 2 else output.shape[-1]
        positions[name] = positions.get(name, 0) + output[0].numel() // channels_last

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(lambda _module, _inputs, output, name=name: watch(name, output))
    with torch.inference_mode():
        model(example_input)
    return positions
