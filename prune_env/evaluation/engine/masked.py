"""A network whose filters are masked instead of cut, so that all plans have the same shapes.

A filter is masked by zeros in the weights that read it, which equals cutting it (as `pruning.proof` proves). On a CPU
this wastes work. A GPU has more multipliers than a small network needs, and new shapes in every layer cost it more; and
with constant shapes, everything that is done for a plan can be recorded as a CUDA graph (`cuda_recording.py`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...common.memory_format import channels_last
from ...pruning.copies import shared_copy
from ...pruning.groups import Plan, PruningGroup, check_plan
from ...pruning.modules import ModuleSpec, Tensors, channels, spec_of
from .fused_conv import converted


class MaskedNetwork:
    """A network that computes what the pruned network of a plan computes.

    `load` stores the mask of a plan, and `apply` masks the weights. Apart from `load`, nothing here waits for a GPU,
    and the operations depend on the plan only through the values of tensors.
    """

    network: nn.Module
    """The masked network in the chosen precision, with BatchNorm statistics in float32."""

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[PruningGroup],
        ranking: Mapping[str, torch.Tensor],
        *,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        layout: torch.memory_format = torch.channels_last,
    ) -> None:
        """Copy a network.

        Args:
            model: The original network in float32 and eval mode.
            groups: Its pruning groups.
            ranking: Name of a group -> indices of its filters, the most important first.
            dtype: Precision of weights and features.
            device: Device of the copy.
            layout: Memory format of the weights.
        """
        self._groups, self._ranking = tuple(groups), ranking
        copied = copy.deepcopy(shared_copy(model)).to(device)
        self.network = channels_last(copied, layout).eval().requires_grad_(False)
        for module in self.network.modules():
            if not isinstance(module, _BatchNorm):
                _convert(module, dtype, layout)
        # 1 for every filter that is kept; the last entry stands for channels that belong to no filter.
        self._mask = torch.ones(sum(group.filters for group in groups) + 1, dtype=dtype, device=device)
        self._consumers: list[tuple[ModuleSpec, torch.Tensor, Tensors, Tensors]] = []
        """Spec, filter behind each input channel, original tensors, masked tensors."""
        for path, filters in filters_of_inputs(self.network, self._groups).items():
            module = self.network.get_submodule(path)
            spec = spec_of(module)
            assert spec is not None, "groups contain registered modules only"
            masked = spec.input_tensors(module)
            original = {name: tensor.clone() for name, tensor in masked.items()}
            self._consumers.append((spec, filters.to(device), original, masked))

    @torch.inference_mode()
    def load(self, plan: Plan) -> None:
        """Store the mask of a plan for `apply`.

        Raises:
            ValueError: The plan does not fit the groups.
        """
        check_plan(self._groups, plan)
        mask, first = torch.zeros(self._mask.shape), 0
        for group, kept in zip(self._groups, plan, strict=True):
            mask[first + self._ranking[group.name][:kept]] = 1
            first += group.filters
        mask[first] = 1
        self._mask.copy_(mask)

    @torch.inference_mode()
    def apply(self) -> None:
        """Mask the weights that read filters which the loaded plan removes, and restore all others."""
        for spec, filters, original, masked in self._consumers:
            spec.mask_inputs(original, self._mask[filters], masked)


def filters_of_inputs(network: nn.Module, groups: Sequence[PruningGroup]) -> dict[str, torch.Tensor]:
    """Return the filter that each input channel of a module belongs to, int64 [C], by the module's path.

    Filters are numbered through all groups; the number after the last one stands for channels that belong to no filter.
    """
    found: dict[str, torch.Tensor] = {}
    first, count = 0, sum(group.filters for group in groups)
    for group in groups:
        filters = torch.arange(first, first + group.filters)[:, None]
        for member in group.members:
            if member.side == "in":
                size = channels(network.get_submodule(member.module), "in")
                owners = found.setdefault(member.module, torch.full((size,), count))
                owners[member.index.reshape(group.filters, -1)] = filters
        first += group.filters
    return found


def _convert(module: nn.Module, dtype: torch.dtype, layout: torch.memory_format) -> None:
    """Convert a module's own tensors, but not those of its children."""
    for name, parameter in module._parameters.items():
        if parameter is not None:
            module._parameters[name] = nn.Parameter(converted(parameter, dtype, layout), requires_grad=False)
    for name, buffer in module._buffers.items():
        if buffer is not None and buffer.is_floating_point():
            module._buffers[name] = converted(buffer, dtype, layout)
