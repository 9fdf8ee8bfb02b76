"""Which filters must go together: pruning groups, found by torch-pruning and checked against what surgery can do.

torch-pruning (Fang et al., DepGraph, CVPR 2023) walks the autograd graph of one forward pass. Letters: C filters of a
group, m positions that go with one filter.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from ..networks.resnet import ZeroPadShortcut
from .surgery import PruningError, Side, channels, refusal, twin

Plan = tuple[int, ...]
"""How many filters stay in every group, in the order of the agents."""


@dataclass(frozen=True, eq=False)
class Member:
    """One side of a module, and which of its channels go with which filter.

    module  path of the module in the network
    side    'out' or 'in'; modules whose two sides are one (BatchNorm, depthwise convolution) have 'out' alone
    index   int64 [C, m]: positions on that side's channel axis that go with each filter; m > 1 after a flatten
    """

    module: str
    side: Side
    index: torch.Tensor


@dataclass(frozen=True, eq=False)
class PruningGroup:
    """Filters that can only go together: one agent.

    agent_id  conv_0, conv_1, ... in forward order of the first convolution
    layers    paths of the convolutions that lose these filters, in forward order
    filters   how many there are: C
    members   every module side that changes when one goes
    """

    agent_id: str
    layers: tuple[str, ...]
    filters: int
    members: tuple[Member, ...]


class _Entry(nn.Module):
    """Makes the network's input a node of the graph, so that channels tied to it or concatenated with it are seen."""

    def __init__(self, input_channels: int) -> None:
        super().__init__()
        self.in_channels = self.out_channels = input_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 1.0


class _Refused(Exception):
    """A group cannot be pruned safely; the message says why."""


def find_groups(model: nn.Module, example_input: torch.Tensor) -> list[PruningGroup]:
    """The groups of convolution filters that can go, in forward order. The model is traced as a copy, in eval mode.

    example_input  float [B, C_in, H, W]
    What defines the network's output stays whole. A group that surgery cannot handle is left out with a warning that
    names its layers and the reason. Raises PruningError (a ValueError) where tracing fails or nothing can be pruned.
    """
    trace = _Trace(model, example_input)
    groups: list[PruningGroup] = []
    seen: set[str] = set()
    for path in trace.convolutions:
        if path in seen:
            continue
        items = trace.items(path)
        layers = trace.layers(items) or (path,)
        seen.update(layers)
        try:
            members = trace.members(items)
        except _Refused as refused:
            warnings.warn(f"layers {', '.join(layers)} are not pruned: {refused}", stacklevel=2)
            continue
        filters = channels(trace.modules[path], "out")
        groups.append(PruningGroup(f"conv_{len(groups)}", layers, filters, members))
    if not groups:
        raise PruningError(
            "no group of filters can be pruned: the network needs a convolution whose output feeds another layer; "
            "warnings say why groups were left out"
        )
    return groups


class _Trace:
    """torch-pruning's dependency graph of a network, and what it lacks: call order, names, the network's output."""

    def __init__(self, model: nn.Module, example_input: torch.Tensor) -> None:
        copy = twin(model).eval()
        self.modules = dict(copy.named_modules())
        self._names: dict[nn.Module, str] = {module: name for name, module in self.modules.items()}
        self._order: dict[str, int] = {}  # path -> position of its first call
        self._shared = _shared_parameters(self.modules)
        device = next((parameter.device for parameter in copy.parameters()), example_input.device)
        with torch.inference_mode(False), torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for parameter in copy.parameters():
                # Parameters outside layers are found through their gradient nodes, frozen ones too.
                parameter.requires_grad_(parameter.is_floating_point())
            example = example_input.detach().clone().to(device).requires_grad_()
            try:
                self._graph, outputs = self._build(copy, example)
            except Exception as error:
                raise _tracing_failed(error) from error
        nodes = self._graph.module2node.values()
        self._outputs = {id(node) for node in nodes if any(node.grad_fn is output for output in outputs)}
        self.convolutions = [path for path in self._order if isinstance(self.modules[path], _ConvNd)]

    def _build(self, copy: nn.Module, example: torch.Tensor) -> tuple[Any, list[Any]]:
        import torch_pruning as tp

        class TwoSided(tp.pruner.function.BasePruningFunc):
            """A module whose input channels and output channels go independently of each other."""

            def prune_out_channels(self, layer: Any, idxs: list[int]) -> Any:
                raise NotImplementedError  # only told apart from the other, never called

            def prune_in_channels(self, layer: Any, idxs: list[int]) -> Any:
                raise NotImplementedError

            def get_out_channels(self, layer: Any) -> int:
                return layer.out_channels

            def get_in_channels(self, layer: Any) -> int:
                return layer.in_channels

        def record(module: nn.Module, inputs: Any, output: Any) -> None:
            self._order.setdefault(self._names[module], len(self._order))

        outputs: list[Any] = []

        def forward(network: nn.Module, images: torch.Tensor) -> Any:
            result = network(images)
            outputs.extend(tensor.grad_fn for tensor in tp.utils.flatten_as_list(result))
            return result

        handles = [module.register_forward_hook(record) for module in self._names]
        network = nn.Sequential(_Entry(example.shape[1]), copy)
        two_sided = {_Entry: TwoSided(), ZeroPadShortcut: TwoSided()}
        graph = tp.DependencyGraph().build_dependency(
            network, example, forward_fn=forward, customized_pruners=two_sided, verbose=False
        )
        for handle in handles:
            handle.remove()
        return graph, outputs

    def items(self, path: str) -> list[Any]:
        """Everything torch-pruning would prune with the filters of one convolution."""
        conv = self.modules[path]
        try:
            pruner = self._graph.get_pruner_of_module(conv)
            return list(self._graph.get_pruning_group(conv, pruner.prune_out_channels, range(channels(conv, "out"))))
        except Exception as error:
            raise _tracing_failed(error) from error

    def layers(self, items: list[Any]) -> tuple[str, ...]:
        """The convolutions that lose filters, in forward order."""
        paths = [
            self._names[item.dep.target.module]
            for item in items
            if isinstance(item.dep.target.module, _ConvNd) and self._side(item) == "out"
        ]
        return tuple(sorted(dict.fromkeys(paths), key=self._order.__getitem__))

    def members(self, items: list[Any]) -> tuple[Member, ...]:
        """The group's module sides in forward order. Raises _Refused with the reason why there is no such group."""
        filters = len(items[0].idxs)
        members = []
        for item in items:
            module = item.dep.target.module
            if id(item.dep.target) in self._outputs and self._side(item) == "out":
                raise _Refused("their channels are the network's output")
            if module not in self._names:
                self._check_operation(item.dep.target)
                continue
            path = self._names[module]
            if reason := refusal(module):
                raise _Refused(f"{path} {reason}")
            if path in self._shared:
                raise _Refused(f"{path} shares a parameter with {self._shared[path]}")
            if channels(module, self._side(item)):
                members.append(Member(path, self._side(item), _index(item, path, filters)))
        return tuple(sorted(members, key=lambda member: (self._order[member.module], member.side)))

    def _side(self, item: Any) -> Side:
        pruner = self._graph.get_pruner_of_module(item.dep.target.module)
        both = pruner.prune_in_channels == pruner.prune_out_channels
        return "in" if item.dep.handler == pruner.prune_in_channels and not both else "out"

    def _check_operation(self, node: Any) -> None:
        """Raises _Refused for operations between the layers that would not follow a change of channels."""
        kind = self._graph.ops.OPTYPE
        if isinstance(node.module, _Entry):
            raise _Refused("they are tied to the channels of the network's input")
        if node.type == kind.PARAMETER:
            name = self._graph._param_to_name[node.module].removeprefix("1.")  # 0 is the entry
            raise _Refused(f"they meet the parameter {name} outside a layer")
        if node.type == kind.OUTPUT:
            raise _Refused("their channels are the network's output")
        if node.type in (kind.SPLIT, kind.UNBIND):
            raise _Refused("they pass through a split, whose sizes would not follow")
        if node.type == kind.SLICE and node.module.dim == 1:
            raise _Refused("they pass through a slice of the channels, whose bounds would not follow")
        if node.type == kind.CONCAT and node.module.offsets is None:
            raise _Refused("they pass through a concatenation with offsets that cannot be told")


def _index(item: Any, path: str, filters: int) -> torch.Tensor:
    """Positions by filter, [C, m], ascending in every row."""
    rows: list[set[int]] = [set() for _ in range(filters)]
    for position, root in zip(item.idxs, item.root_idxs, strict=True):
        if root is None:
            raise _Refused(f"which channels of {path} belong to which filter cannot be told")
        rows[root].add(position)
    if len({len(row) for row in rows}) != 1 or not rows[0]:
        raise _Refused(f"the filters are tied unevenly to the channels of {path}")
    if len(set().union(*rows)) != sum(len(row) for row in rows):
        raise _Refused(f"filters of one layer are tied to each other through {path}")
    return torch.tensor([sorted(row) for row in rows])


def _shared_parameters(modules: dict[str, nn.Module]) -> dict[str, str]:
    """Path of every module with a parameter that another one holds too -> that other one's path."""
    owner: dict[int, str] = {}
    shared = {}
    for path, parameter in _own_parameters(modules):
        first = owner.setdefault(id(parameter), path)
        if first != path:
            shared[path], shared[first] = first, path
    return shared


def _own_parameters(modules: dict[str, nn.Module]) -> Iterator[tuple[str, nn.Parameter]]:
    for path, module in modules.items():
        for parameter in module.parameters(recurse=False):
            yield path, parameter


def _tracing_failed(error: Exception) -> PruningError:
    return PruningError(
        f"torch-pruning cannot trace this network ({type(error).__name__}: {error}); check that it runs on the example "
        "input, and that its layers are plain modules"
    )
