"""A network made ready to run one plan after another.

Built once: its convolutions become units together with what follows them (`fusion.py`, `units.py`). A plan then only
selects weights; no module is copied and nothing is compiled.

Filter counts are rounded up to a multiple of 8, with filters that nobody reads: their weights in the layers behind are
zero, which equals cutting them (what `pruning.proof` proves). Vector units fill up odd counts anyway, more slowly, and
every new shape costs oneDNN about a millisecond for each layer.

At construction it is checked, in float32, that the program computes what plainly cut networks compute; what does not is
run unfused.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvTransposeNd

from ...common.device import channels_last, exact_convolutions
from ...networks.resnet import ZeroPadShortcut
from ...pruning.copies import twin
from ...pruning.groups import Plan, PruningGroup
from ...pruning.surgery import build, check_plan, cut_modules, removed_channels
from ...scoring.batchnorm import TOLERANCE, estimate_statistics, outputs_agree, randomise_batchnorms, recalibrate
from .fused_conv import POSITIONS, Unit, converted
from .fusion import fused_graph, fused_modules

SIZES = ("out_channels", "in_channels", "groups", "out_features", "in_features", "num_features", "num_parameters")
MULTIPLE = 8

logger = logging.getLogger(__name__)


class Program:
    """`network` runs the plan that was loaded last, in `dtype`; statistics and what is folded are kept in float32."""

    network: nn.Module

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[PruningGroup],
        example_input: torch.Tensor,
        *,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        """model: in float32 and eval mode; it is copied. example_input: float32 [B, C, H, W], two images or more."""
        self._device, self._groups = torch.device(device), tuple(groups)
        self._source = channels_last(copy.deepcopy(twin(model)).to(device)).requires_grad_(False)
        changing = {member.module for group in groups for member in group.members}
        norms = {path for path, module in self._source.named_modules() if isinstance(module, _BatchNorm)}
        self._changing = changing | norms  # paths of modules that a plan or a recalibration changes
        self.refused: list[str] = []
        """Why the network could not be fused any further, for whoever wonders about its speed."""
        for fused in (fused_graph, fused_modules):
            with exact_convolutions(self._device):
                reason = self._trial(fused, example_input.to(device), dtype)
            if reason is None:
                break
            self.refused.append(f"{fused.__name__}: {reason}")
            logger.info("%s is not fused by %s: %s", type(model).__name__, fused.__name__, reason)
        else:
            self._take(copy.deepcopy(self._source), 1)
        self.dtype, self._foreign = dtype, True
        self.load({group.name: torch.arange(group.filters) for group in groups}, self._plans()[0])

    @torch.inference_mode()
    def load(self, ranking: Mapping[str, torch.Tensor], plan: Plan) -> None:
        """Takes the weights of a plan's network, with the stored BatchNorm statistics; arguments as for `build`."""
        check_plan(self._groups, plan)
        present, silent = {}, {}
        for group, kept in zip(self._groups, plan, strict=True):
            order = ranking[group.name]
            rounded = min(group.filters, -(-kept // self._multiple) * self._multiple)
            present[group.name] = order[:rounded].sort().values
            silent[group.name] = order[kept:rounded]
        removed = removed_channels(self._groups, present)
        modules = dict(self._source.named_modules(remove_duplicate=False))
        smaller = cut_modules(modules, removed)
        for group in self._groups:
            for member in group.members:
                positions = member.index[silent[group.name]].flatten()
                if member.side == "in" and len(positions):
                    gone = removed.get((member.module, "in"))
                    positions = positions if gone is None else positions - torch.searchsorted(gone, positions)
                    tensors, _ = smaller.setdefault(member.module, ({}, {}))
                    _silence(modules[member.module], tensors, positions)
        # A network that was trained on may have left its weights anywhere.
        self._put(modules, self._holders if self._foreign else self._changing, smaller)
        self._foreign = False

    @torch.inference_mode()
    def load_network(self, network: nn.Module) -> None:
        """Takes the weights of a network that was cut out of the model, and trained since, maybe."""
        self._foreign = True
        self._put(dict(network.named_modules(remove_duplicate=False)), self._holders)

    @torch.inference_mode()
    def recalibrate(self, batches: Iterable[torch.Tensor]) -> None:
        """BatchNorm statistics become those of the batches, each [B, C, H, W] in the program's dtype."""
        try:
            for unit in self._units:
                unit.start_calibration(self.dtype)
            with estimate_statistics(self.network) as others:
                if others or any(unit.calibrating for unit in self._units):
                    for batch in batches:
                        self.network(batch)
        finally:
            for unit in self._units:
                unit.end_calibration(self.dtype)

    def _plans(self) -> tuple[Plan, Plan, Plan]:
        """The whole network, and two that are cut to odd counts."""
        full = tuple(group.filters for group in self._groups)
        return full, tuple(max(1, count // 2 - 1) for count in full), tuple(-(-2 * count // 3) for count in full)

    @torch.inference_mode()
    def _trial(
        self, fused: Callable[[nn.Module, torch.Tensor], nn.Module], example: torch.Tensor, dtype: torch.dtype
    ) -> str | None:
        """Takes the fused network; gives what speaks against it. Everything is compared with plainly cut networks."""
        source, self.dtype, self._foreign = self._source, torch.float32, True
        self._source = randomise_batchnorms(copy.deepcopy(source))
        ranking = {group.name: torch.arange(group.filters).flip(0) for group in self._groups}
        images = torch.cat((example, example.flip(-1), -example)).to(memory_format=torch.channels_last)
        try:
            self._take(fused(copy.deepcopy(self._source), example.clone()), MULTIPLE)
            for unit in self._units:
                unit.positions = images[0, 0].numel() * len(images)  # all of them
            for plan in self._plans():
                network = build(self._source, self._groups, ranking, plan)
                self.load(ranking, plan)
                for batch in (images, example):
                    if not outputs_agree(self.network(batch.clone()), network(batch.clone())):
                        return f"plan {plan} gives other outputs"
                recalibrate(network, (images.clone(),))
                self.recalibrate((images.clone(),))
                if not outputs_agree(self.network(images.clone()), network(images.clone()), 10 * TOLERANCE):
                    return f"plan {plan} gives other outputs once its BatchNorm is recalibrated"
            self.dtype, self._foreign = dtype, True
            self.load(ranking, plan)
            self.recalibrate((images.to(dtype),))
            if not torch.equal(self.network(images.to(dtype)).isfinite(), network(images.clone()).isfinite()):
                return f"it overflows in {dtype}"
            for unit in self._units:
                unit.positions = POSITIONS if self._device.type == "cpu" else 2**62  # a GPU reads them all sooner
        except Exception as error:  # whatever a foreign forward makes of symbolic inputs
            return f"{type(error).__name__}: {error}"
        finally:
            self._source = source
        return None

    def _take(self, network: nn.Module, multiple: int) -> None:
        self.network, self._multiple = network.eval(), multiple
        self._units = [module for module in network.modules() if isinstance(module, Unit)]
        self._holders = dict(network.named_modules())  # path in the model -> the module that has its tensors now
        for path, module in network.named_modules():
            if isinstance(module, Unit):
                self._holders[path] = module.conv
                if module.norm is not None:
                    self._holders[module.norm_path] = module.norm

    def _put(
        self,
        modules: Mapping[str, nn.Module],
        paths: Iterable[str],
        smaller: Mapping[str, tuple[dict[str, torch.Tensor], dict[str, int]]] = MappingProxyType({}),
    ) -> None:
        """Tensors and sizes of the modules at `paths`, or what `smaller` has in their place."""
        exact = {id(module) for unit in self._units for module in unit.held}
        for path in paths:
            holder = self._holders.get(path)
            if holder is None:
                continue
            module = modules[path]
            tensors, sizes = smaller.get(path, ({}, {}))
            for name in SIZES:
                if name in vars(module):
                    setattr(holder, name, sizes.get(name, getattr(module, name)))
            as_it_is = id(holder) in exact or isinstance(holder, _BatchNorm)
            for kind in ("_parameters", "_buffers"):
                for name, tensor in getattr(module, kind).items():
                    if tensor is None or getattr(holder, kind).get(name) is None:
                        continue
                    tensor = tensors.get(name, tensor).detach().to(self._device)
                    if tensor.is_floating_point() and not as_it_is:
                        tensor = converted(tensor, self.dtype)
                    if kind == "_buffers":  # a forward pass may write to it
                        holder._buffers[name] = tensor.clone()
                    else:
                        holder._parameters[name] = nn.Parameter(tensor, requires_grad=False)
        for unit in self._units:
            unit.forget()


def _silence(module: nn.Module, tensors: dict[str, torch.Tensor], positions: torch.Tensor) -> None:
    """Makes a module deaf to some positions of its input; `tensors` holds those of its own that were cut."""
    if isinstance(module, ZeroPadShortcut):
        source = tensors.get("source", module.source)
        tensors["source"] = source.masked_fill(torch.isin(source, positions.to(source.device)), -1)
        return
    weight = tensors["weight"] if "weight" in tensors else module.get_parameter("weight").clone()
    axis = 0 if isinstance(module, _ConvTransposeNd) else 1
    tensors["weight"] = weight.index_fill_(axis, positions.to(weight.device), 0)
