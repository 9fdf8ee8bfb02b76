"""Replace convolutions, and the BatchNorm, addition and ReLU behind them, with fused convolutions.

Such chains are found in the graph that torch.fx traces. In a network that cannot be traced symbolically, only BatchNorm
is fused. Neither way sees everything that a forward pass may do, so the caller compares the result with the network.
"""

from __future__ import annotations

import operator
from collections import Counter
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F

from ...pruning.modules import spec_of
from ...scoring.batchnorm import folding_pairs
from .fused_conv import FusedConv

RELU: tuple[Any, ...] = (F.relu, torch.relu, torch.relu_, "relu", "relu_")
ADD: tuple[Any, ...] = (operator.add, operator.iadd, torch.add, "add", "add_")
IN_PLACE: tuple[Any, ...] = (operator.iadd, operator.imul, operator.isub, operator.itruediv)
IDENTITY_IN_EVAL_MODE = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)

Kind = TypeVar("Kind", bound=nn.Module)


def fused_graph(model: nn.Module, example: torch.Tensor) -> nn.Module:
    """Return a network as a graph of fused convolutions and the other operations that it calls.

    Args:
        model: The network in eval mode. Its modules become those of the graph.
        example: Input float [B, C, H, W].

    Raises:
        Exception: Any exception that the network's code raises when it is called with symbolic inputs.
    """
    network = fx.GraphModule(model, _Tracer().trace(model))
    for node in list(network.graph.nodes):  # modules without an effect would hide which nodes follow each other
        if node.op == "call_module" and isinstance(network.get_submodule(str(node.target)), IDENTITY_IN_EVAL_MODE):
            node.replace_all_uses_with(node.args[0])
            network.graph.erase_node(node)
        node.type = None  # an annotation may be a string, and a graph with strings cannot be pickled (torch 2.11)
    ShapeProp(network).propagate(example)
    calls = Counter(str(node.target) for node in network.graph.nodes if node.op == "call_module")
    for node in list(network.graph.nodes):
        conv = _called_once(node, network, nn.Conv2d, calls)
        if conv is not None and _can_be_fused(conv):
            _fuse(_chain(node, network, calls), conv, network)
    network.delete_all_unused_submodules()
    _let_overwrite(network)
    network.graph.lint()
    network.recompile()
    # Every GraphModule has a class of its own, whose calls print errors; some are expected where it is tried out.
    setattr(type(network), "__call__", nn.Module.__call__)  # noqa: B010
    return network


def fused_modules(model: nn.Module, example: torch.Tensor) -> nn.Module:
    """Return a network in which every convolution is fused with the BatchNorm that follows it.

    Args:
        model: The network in eval mode, which is changed.
        example: Input float [B, C, H, W].
    """
    for conv_path, norm_path in folding_pairs(model, example):
        conv, norm = model.get_submodule(conv_path), model.get_submodule(norm_path)
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        if _can_be_fused(conv):
            _replace(model, conv_path, FusedConv(conv, norm, norm_path))
            _replace(model, norm_path, nn.Identity())
    return model


@dataclass
class _Chain:
    """Nodes that one fused convolution replaces, the convolution's first."""

    nodes: list[fx.Node]
    norm: nn.BatchNorm2d | None = None
    norm_path: str = ""
    relu: bool = False
    other: fx.Node | None = None
    """The node whose result is added."""

    @property
    def next(self) -> fx.Node | None:
        """The only node that uses the result so far.

        None if a node in between writes to memory, because that might be the input of the convolution, which would run
        later than before.
        """
        users = list(self.nodes[-1].users)
        if len(users) != 1 or users[0].op == "output":
            return None
        between = self.nodes[-1].next
        while between is not users[0]:
            if _writes(between):
                return None
            between = between.next
        return users[0]


class _Tracer(fx.Tracer):
    """Follows every module except torch's own layers and those that pruning traces as a whole."""

    proxy_buffer_attributes = True  # a value computed from a buffer must follow the buffer into another precision

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        spec = spec_of(m)
        return (spec is not None and spec.traced_as_whole) or super().is_leaf_module(m, module_qualified_name)


def _chain(conv: fx.Node, network: nn.Module, calls: Counter[str]) -> _Chain:
    chain = _Chain([conv])
    if (after := chain.next) is not None:
        norm = _called_once(after, network, nn.BatchNorm2d, calls)
        if norm is not None and norm.running_mean is not None:
            chain.norm, chain.norm_path = norm, str(after.target)
            chain.nodes.append(after)
    if (after := chain.next) is not None and (other := _added(after, chain.nodes[-1])) is not None:
        chain.other = other
        chain.nodes.append(after)
    if (after := chain.next) is not None and _is_relu(after, network):
        chain.relu = True
        chain.nodes.append(after)
    return chain


def _fuse(chain: _Chain, conv: nn.Conv2d, network: fx.GraphModule) -> None:
    first, last = chain.nodes[0], chain.nodes[-1]
    network.add_submodule(str(first.target), FusedConv(conv, chain.norm, chain.norm_path, chain.relu))
    with network.graph.inserting_before(last):
        inputs = (first.args[0],) if chain.other is None else (first.args[0], chain.other)
        call = network.graph.call_module(str(first.target), inputs)
    call.meta = dict(last.meta)
    last.replace_all_uses_with(call)
    for node in reversed(chain.nodes):
        network.graph.erase_node(node)


def _can_be_fused(conv: nn.Conv2d) -> bool:
    return conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


def _called_once(node: fx.Node, network: nn.Module, kind: type[Kind], calls: Counter[str]) -> Kind | None:
    """The module that a node calls, if it is exactly of this kind, called nowhere else, and with one input."""
    if node.op != "call_module" or calls[str(node.target)] != 1 or len(node.args) != 1 or node.kwargs:
        return None
    module = network.get_submodule(str(node.target))
    return module if type(module) is kind else None


def _added(node: fx.Node, to: fx.Node) -> fx.Node | None:
    """The node that `node` adds to the result of `to`, if it has the same shape; None if `node` does anything else."""
    if node.op not in ("call_function", "call_method") or node.target not in ADD or len(node.args) != 2 or node.kwargs:
        return None
    first, second = node.args
    if not isinstance(first, fx.Node) or not isinstance(second, fx.Node) or first is second:
        return None
    other = second if first is to else first
    if other is first and _writes(node) and len(other.users) > 1:
        return None  # other nodes use the memory that is written to
    return other if _shape(other) is not None and _shape(other) == _shape(to) else None


def _let_overwrite(network: fx.GraphModule) -> None:
    """Let fused convolutions write to the memory of what they add, where that is safe.

    It is safe if that is the result of another fused convolution, if only fused convolutions up to this one use it (any
    other operation might keep a view), and if it is not this one's own input.
    """
    places = {node: place for place, node in enumerate(network.graph.nodes)}
    fused = {
        node: module
        for node in places
        if node.op == "call_module" and isinstance(module := network.get_submodule(str(node.target)), FusedConv)
    }
    for node, module in fused.items():
        other = node.args[1] if len(node.args) > 1 else None
        if isinstance(other, fx.Node) and other in fused and other is not node.args[0]:
            module.overwrites = all(user in fused and places[user] <= places[node] for user in other.users)


def _writes(node: fx.Node) -> bool:
    """Whether a node may write to one of its inputs."""
    if node.op == "call_module":
        owner = node.graph.owning_module
        return owner is None or bool(getattr(owner.get_submodule(str(node.target)), "inplace", False))
    if node.op not in ("call_method", "call_function"):
        return False
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    flags = [argument for argument in (*node.args[1:], *node.kwargs.values()) if argument is True]  # `inplace`, maybe
    return name.endswith("_") or node.target in IN_PLACE or name == "setitem" or bool(flags)


def _shape(node: fx.Node) -> torch.Size | None:
    return getattr(node.meta.get("tensor_meta"), "shape", None)


def _is_relu(node: fx.Node, network: nn.Module) -> bool:
    if node.op == "call_module":
        return type(network.get_submodule(str(node.target))) is nn.ReLU
    return node.op in ("call_function", "call_method") and node.target in RELU


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
