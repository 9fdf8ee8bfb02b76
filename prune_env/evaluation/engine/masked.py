"""A network whose filters are silenced, not cut: every plan has the same shapes.

Masks on the weights that read a filter switch it off, which equals cutting it (what `pruning.proof` proves). It makes a
processor compute in vain. A GPU has more multipliers than a small network needs and is spared a new shape in every
layer; and with shapes that never change, all that is done for a plan can be recorded (`recorded.py`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvTransposeNd

from ...common.device import channels_last
from ...networks.resnet import ZeroPadShortcut
from ...pruning.copies import twin
from ...pruning.groups import Plan, PruningGroup
from ...pruning.surgery import channels, check_plan
from .fused_conv import converted


class MaskedNetwork:
    """`network` runs the plan that was loaded last, in `dtype`; statistics of BatchNorm are kept in float32.

    model  in float32 and eval mode; it is copied
    Besides `load`, nothing here waits for a GPU or depends on the plan otherwise than through tensors.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[PruningGroup],
        ranking: Mapping[str, torch.Tensor],
        *,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        self._groups, self._ranking = tuple(groups), ranking
        self.network = channels_last(copy.deepcopy(twin(model)).to(device)).eval().requires_grad_(False)
        for module in self.network.modules():
            if not isinstance(module, _BatchNorm):
                _convert(module, dtype)
        # The last one stands for what no filter feeds.
        self._present = torch.ones(sum(group.filters for group in groups) + 1, dtype=dtype, device=device)
        self._readers = []  # module, the filter behind each of its inputs, and what it reads all of them with
        for path, feeding in feeders(self.network, self._groups).items():
            module = self.network.get_submodule(path)
            self._readers.append((module, feeding.to(device), _reading(module).clone()))

    @torch.inference_mode()
    def load(self, plan: Plan) -> None:
        """The plan that `silence` makes the network's. Raises ValueError for one that does not fit the groups."""
        check_plan(self._groups, plan)
        present, first = torch.zeros(self._present.shape), 0
        for group, kept in zip(self._groups, plan, strict=True):
            present[first + self._ranking[group.name][:kept]] = 1
            first += group.filters
        present[first] = 1
        self._present.copy_(present)

    @torch.inference_mode()
    def silence(self) -> None:
        """Makes every module deaf to the filters that the loaded plan removes, and hear all others."""
        for module, feeding, whole in self._readers:
            heard = self._present[feeding]  # [C]
            if isinstance(module, ZeroPadShortcut):
                module.source.copy_(torch.where(heard[whole.clamp(min=0)] > 0, whole, -1))
            else:
                axis = 0 if isinstance(module, _ConvTransposeNd) else 1
                shape = [-1 if dimension == axis else 1 for dimension in range(whole.ndim)]
                torch.mul(whole, heard.view(shape), out=_reading(module))


def feeders(network: nn.Module, groups: Sequence[PruningGroup]) -> dict[str, torch.Tensor]:
    """Path of every module that reads filters -> which filter feeds each of its input positions, int64 [C].

    Filters are counted through all groups; the number after the last one stands for what no filter feeds.
    """
    found: dict[str, torch.Tensor] = {}
    first, count = 0, sum(group.filters for group in groups)
    for group in groups:
        filters = torch.arange(first, first + group.filters)[:, None]
        for member in group.members:
            if member.side == "in":
                size = channels(network.get_submodule(member.module), "in")
                feeding = found.setdefault(member.module, torch.full((size,), count))
                feeding[member.index.reshape(group.filters, -1)] = filters
        first += group.filters
    return found


def _reading(module: nn.Module) -> torch.Tensor:
    """What a module reads its input with."""
    return module.source if isinstance(module, ZeroPadShortcut) else module.get_parameter("weight")


def _convert(module: nn.Module, dtype: torch.dtype) -> None:
    for name, parameter in module._parameters.items():
        if parameter is not None:
            module._parameters[name] = nn.Parameter(converted(parameter, dtype), requires_grad=False)
    for name, buffer in module._buffers.items():
        if buffer is not None and buffer.is_floating_point():
            module._buffers[name] = converted(buffer, dtype)
