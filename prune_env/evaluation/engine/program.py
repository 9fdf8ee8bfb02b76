"""A network that is prepared once to run one plan after another.

Its convolutions are fused with the operations behind them (`fusion.py`, `fused_conv.py`). Loading a plan then only
selects weights: no module is copied and nothing is compiled.

Filter counts are padded to a multiple of 8 with masked filters: their weights in the layers behind are zero, which
equals cutting them (as `pruning.proof` proves). Vector units are slower for odd counts, and each new shape costs oneDNN
about a millisecond in each layer.

At construction the program is compared, in float32, with networks that are cut without it. If they differ, less is
fused.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...common.device import exact_convolutions
from ...common.memory_format import channels_last, in_layout
from ...pruning.copies import shared_copy
from ...pruning.groups import Plan, PruningGroup, check_plan
from ...pruning.modules import CutModule, spec_of
from ...pruning.surgery import Removed, build, cut_modules, removed_channels
from ...scoring.batchnorm import TOLERANCE, estimate_statistics, outputs_agree, randomise_batchnorms, recalibrate
from .fused_conv import POSITIONS, FusedConv, converted
from .fusion import fused_graph, fused_modules

MULTIPLE = 8
"""Filter counts are padded to multiples of this number."""
ALL_POSITIONS = 2**62

Ranking = Mapping[str, torch.Tensor]
"""Name of a group -> indices of its filters, the most important first."""

logger = logging.getLogger(__name__)


class Program:
    """Runs the network of the plan that was loaded last."""

    network: nn.Module
    """The fused network in the chosen precision, with statistics and folded tensors in float32."""
    refused: list[str]
    """Why the network could not be fused further."""

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[PruningGroup],
        example_input: torch.Tensor,
        *,
        dtype: torch.dtype,
        layout: torch.memory_format = torch.channels_last,
        multiple: int = MULTIPLE,
    ) -> None:
        """Copy and fuse a network.

        Args:
            model: The original network in float32 and eval mode.
            groups: Its pruning groups.
            example_input: float32 [B, C, H, W], two images or more, on the device to use.
            dtype: Precision of weights and features.
            layout: Memory format of weights and features, in which the network must run.
            multiple: Number that filter counts are padded to a multiple of.
        """
        self._device, self._groups, self._layout = example_input.device, tuple(groups), layout
        source = copy.deepcopy(shared_copy(model)).to(self._device)
        self._source = channels_last(source, layout).requires_grad_(False)
        self._sizes = {path: _size_attributes(module) for path, module in self._source.named_modules()}
        norms = {path for path, module in self._source.named_modules() if isinstance(module, _BatchNorm)}
        # Paths of modules that a plan or a recalibration changes.
        self._changing = norms | {member.module for group in groups for member in group.members}
        self.refused = []
        for fused in (fused_graph, fused_modules):
            with exact_convolutions(self._device):
                reason = self._try(fused, example_input, dtype, multiple)
            if reason is None:
                break
            self.refused.append(f"{fused.__name__}: {reason}")
            logger.info("%s is not fused by %s: %s", type(model).__name__, fused.__name__, reason)
        else:
            self._use(copy.deepcopy(self._source), 1)
        self.dtype, self._has_other_weights = dtype, True
        self.load({group.name: torch.arange(group.filters) for group in groups}, self._plans()[0])

    @torch.inference_mode()
    def load(self, ranking: Ranking, plan: Plan) -> None:
        """Load the weights and stored BatchNorm statistics of the network that `build` makes from a plan.

        Args:
            ranking: Name of a group -> indices of its filters, the most important first.
            plan: How many filters each group keeps.

        Raises:
            ValueError: The plan does not fit the groups.
        """
        check_plan(self._groups, plan)
        padded, masked = {}, {}
        for group, kept in zip(self._groups, plan, strict=True):
            order = ranking[group.name]
            count = min(group.filters, -(-kept // self._multiple) * self._multiple)
            padded[group.name] = order[:count].sort().values
            masked[group.name] = order[kept:count]
        removed = removed_channels(self._groups, padded)
        modules = dict(self._source.named_modules(remove_duplicate=False))
        smaller = cut_modules(modules, removed)
        self._mask_inputs(masked, modules, removed, smaller)
        # The weights of another network may have been loaded into any module.
        self._put(modules, self._holders if self._has_other_weights else self._changing, smaller)
        self._has_other_weights = False

    @torch.inference_mode()
    def load_network(self, network: nn.Module) -> None:
        """Load the weights of a pruned network of the original, which may have been trained since."""
        self._has_other_weights = True
        self._put(dict(network.named_modules(remove_duplicate=False)), self._holders)

    @torch.inference_mode()
    def recalibrate(self, batches: Iterable[torch.Tensor]) -> None:
        """Replace the BatchNorm statistics with those of batches, each [B, C, H, W] in the program's precision."""
        try:
            for conv in self._fused:
                conv.start_calibration(self.dtype)
            with estimate_statistics(self.network) as others:
                if others or any(conv.calibrating for conv in self._fused):
                    for batch in batches:
                        self.network(batch)
        finally:
            for conv in self._fused:
                conv.end_calibration(self.dtype)

    def _plans(self) -> tuple[Plan, Plan, Plan]:
        """The plan that keeps everything, and two with odd filter counts."""
        full = tuple(group.filters for group in self._groups)
        return full, tuple(max(1, count // 2 - 1) for count in full), tuple(-(-2 * count // 3) for count in full)

    @torch.inference_mode()
    def _try(
        self,
        fused: Callable[[nn.Module, torch.Tensor], nn.Module],
        example: torch.Tensor,
        dtype: torch.dtype,
        multiple: int,
    ) -> str | None:
        """Use the network that `fused` makes; return how it differs from networks that are cut, None if it does not."""
        source, self.dtype, self._has_other_weights = self._source, torch.float32, True
        self._source = randomise_batchnorms(copy.deepcopy(source))
        try:
            self._use(fused(copy.deepcopy(self._source), example.clone()), multiple)
            reason = self._difference(example, dtype)
        except Exception as error:  # a forward pass may raise anything when it is called with symbolic inputs
            reason = f"{type(error).__name__}: {error}"
        finally:
            self._source = source
        for conv in self._fused if reason is None else ():
            # Reading all positions is faster on a GPU than selecting some.
            conv.positions = POSITIONS if self._device.type == "cpu" else ALL_POSITIONS
        return reason

    def _difference(self, example: torch.Tensor, dtype: torch.dtype) -> str | None:
        """How the program differs from networks that are cut, for some plans; None if it does not."""
        ranking = {group.name: torch.arange(group.filters).flip(0) for group in self._groups}
        images = in_layout(torch.cat((example, example.flip(-1), -example)), self._layout)
        for conv in self._fused:
            conv.positions = ALL_POSITIONS
        for plan in self._plans():
            network = build(self._source, self._groups, ranking, plan)
            self.load(ranking, plan)
            for batch in (images, example):
                if not outputs_agree(self.network(batch.clone()), network(batch.clone())):
                    return f"plan {plan} gives other outputs"
            recalibrate(network, (images.clone(),))
            self.recalibrate((images.clone(),))
            if not outputs_agree(self.network(images.clone()), network(images.clone()), 10 * TOLERANCE):
                return f"plan {plan} gives other outputs with recalibrated BatchNorm"
        self.load_network(network)  # without padding: numbers that the graph holds as constants would be wrong
        if not outputs_agree(self.network(images.clone()), network(images.clone()), 10 * TOLERANCE):
            return f"a network of plan {plan} gives other outputs"
        self.dtype, self._has_other_weights = dtype, True
        self.load(ranking, plan)
        self.recalibrate((images.to(dtype),))
        if not torch.equal(self.network(images.to(dtype)).isfinite(), network(images.clone()).isfinite()):
            return f"it overflows in {dtype}"
        return None

    def _use(self, network: nn.Module, multiple: int) -> None:
        self.network, self._multiple = network.eval(), multiple
        self._fused = [module for module in network.modules() if isinstance(module, FusedConv)]
        for conv in self._fused:
            conv.layout = self._layout
        self._holders = dict(network.named_modules())  # path in the model -> the module that holds its tensors now
        for path, module in network.named_modules():
            if isinstance(module, FusedConv):
                self._holders[path] = module.conv
                if module.norm is not None:
                    self._holders[module.norm_path] = module.norm

    def _mask_inputs(
        self,
        masked: Mapping[str, torch.Tensor],
        modules: Mapping[str, nn.Module],
        removed: Removed,
        smaller: dict[str, CutModule],
    ) -> None:
        """Mask filters, by the name of their group, in the tensors of the modules that read them."""
        for group in self._groups:
            for member in group.members:
                if member.side == "out" or not len(masked[group.name]):
                    continue
                channels = member.index[masked[group.name]].flatten()
                gone = removed.get((member.module, "in"))
                channels = channels if gone is None else channels - torch.searchsorted(gone, channels)
                module, (tensors, _) = modules[member.module], smaller.setdefault(member.module, CutModule({}, {}))
                spec = spec_of(module)
                assert spec is not None, "groups contain registered modules only"
                for name, tensor in spec.input_tensors(module).items():
                    if name not in tensors:
                        tensors[name] = tensor.detach().clone()
                spec.mask_channels(tensors, channels)

    def _put(
        self,
        modules: Mapping[str, nn.Module],
        paths: Iterable[str],
        smaller: Mapping[str, CutModule] = MappingProxyType({}),
    ) -> None:
        """Copy tensors and sizes of the modules at some paths, or those in `smaller` instead."""
        exact = {id(module) for conv in self._fused for module in conv.replaced}
        for path in paths:
            holder = self._holders.get(path)
            if holder is None:
                continue
            module = modules[path]
            tensors, sizes = smaller.get(path, CutModule({}, {}))
            for name in self._sizes.get(path, ()):
                setattr(holder, name, sizes.get(name, getattr(module, name)))
            in_float32 = id(holder) in exact or isinstance(holder, _BatchNorm)
            for kind in ("_parameters", "_buffers"):
                for name, tensor in getattr(module, kind).items():
                    if tensor is None or getattr(holder, kind).get(name) is None:
                        continue
                    tensor = tensors.get(name, tensor).detach().to(self._device)
                    if tensor.is_floating_point() and not in_float32:
                        tensor = converted(tensor, self.dtype, self._layout)
                    if kind == "_buffers":  # a forward pass may write to it
                        holder._buffers[name] = tensor.clone()
                    else:
                        holder._parameters[name] = nn.Parameter(tensor, requires_grad=False)
        for conv in self._fused:
            conv.invalidate()


def _size_attributes(module: nn.Module) -> tuple[str, ...]:
    """Names of the attributes that hold a module's sizes."""
    spec = spec_of(module)
    return () if spec is None else tuple(spec.size_attributes)
