"""Which filters can only go together.

torch-pruning (Fang et al., CVPR 2023) traces the network once; what it finds is turned into plain index tables, from
which any plan is cut without a graph. Letters: C filters of a group, m positions of a module's channel axis for each.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from ..networks.resnet import ZeroPadShortcut

Plan = tuple[int, ...]
"""Filters kept in each group, in the order of the agents: the whole state of a pruned network."""


class PruningError(ValueError):
    """The network cannot be pruned; the message says what was met and what to do."""


@dataclass(frozen=True)
class Member:
    """A module's channel axis that loses positions when filters of the group go.

    side   'out': what the module produces; 'in': what it consumes. A BatchNorm or depthwise convolution has 'out' only.
    index  int64 [C, m]: the positions that belong to each filter; m > 1 behind a flatten.
    """

    module: str
    side: Literal["in", "out"]
    index: torch.Tensor


@dataclass(frozen=True)
class PruningGroup:
    """Filters that are cut together, over all layers that share them."""

    agent_id: str
    layers: tuple[str, ...]
    """Paths of the convolutions whose output filters go, in forward order."""
    filters: int
    members: tuple[Member, ...]


def find_groups(model: nn.Module, example_input: torch.Tensor) -> list[PruningGroup]:
    """The prunable groups in forward order, named conv_0, conv_1, ...; the model is left as it was.

    The head, whatever defines the model's output, is in no group. A group that cannot be cut safely is left out with
    a warning that names its layers and the reason. Raises PruningError where the network cannot be traced, or where no
    group remains.

    example_input  float32 [B, C_in, H, W]
    """
    traced = _for_tracing(model)
    order, calls = _call_order(traced, example_input)
    names = {module: name for name, module in traced.named_modules()}
    groups = []
    for items in _trace(traced, example_input):
        layers, members, problem = _translate(items, names, model, calls)
        if problem is None and not any(member.side == "in" for member in members):
            continue  # nothing consumes these filters: the head
        if problem is not None:
            warnings.warn(f"layers {', '.join(layers)} are not pruned: {problem}", stacklevel=2)
            continue
        layers.sort(key=order.__getitem__)
        groups.append(PruningGroup("", tuple(layers), len(members[0].index), tuple(members)))
    if not groups:
        raise PruningError(
            f"no convolution of {type(model).__name__} can be pruned; it needs at least one Conv2d whose output another "
            "Conv2d or Linear layer consumes"
        )
    groups.sort(key=lambda group: order[group.layers[0]])
    return numbered(groups)


def numbered(groups: Iterable[PruningGroup]) -> list[PruningGroup]:
    """The same groups with agent ids conv_0, conv_1, ... in their order."""
    return [
        PruningGroup(f"conv_{index}", group.layers, group.filters, group.members) for index, group in enumerate(groups)
    ]


def _for_tracing(model: nn.Module) -> nn.Module:
    """A copy for torch-pruning: eval mode, gradients on, CPU, float32.

    Option A shortcuts are stood in for by 1x1 convolutions, which relate channels the same way: the two sides of the
    shortcut lose channels independently. torch-pruning misreads the zero padding itself.
    """
    model = copy.deepcopy(model).eval().cpu().float().requires_grad_()
    for name, module in list(model.named_modules()):
        if isinstance(module, ZeroPadShortcut):
            parent, _, child = name.rpartition(".")
            stand_in = nn.Conv2d.__new__(nn.Conv2d)
            with torch.random.fork_rng(devices=[]):
                stand_in.__init__(module.in_channels, module.out_channels, 1, stride=2, bias=False)  # type: ignore[misc]
            setattr(model.get_submodule(parent), child, stand_in)
    return model


def _call_order(model: nn.Module, example_input: torch.Tensor) -> tuple[dict[str, int], Counter[str]]:
    """Position of every module's first call, and how often each was called, in one forward pass."""
    order: dict[str, int] = {}
    calls: Counter[str] = Counter()

    def count(name: str) -> None:
        order.setdefault(name, len(order))
        calls[name] += 1

    handles = [
        module.register_forward_hook(lambda *_, name=name: count(name)) for name, module in model.named_modules()
    ]
    try:
        with torch.no_grad():
            model(example_input)
    except Exception as error:
        raise PruningError(
            f"{type(model).__name__} does not run on an input of shape {tuple(example_input.shape)}: {error}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return order, calls


def _trace(model: nn.Module, example_input: torch.Tensor) -> list[Any]:
    import torch_pruning

    try:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = torch_pruning.DependencyGraph().build_dependency(model, example_input, verbose=False)
            return list(graph.get_all_groups(root_module_types=[nn.Conv2d]))
    except Exception as error:  # whatever a foreign network makes the library raise
        raise PruningError(
            f"torch-pruning could not trace {type(model).__name__} ({type(error).__name__}: {error}); the network's "
            "structure is not supported"
        ) from error


def _translate(
    items: Any, names: dict[nn.Module, str], model: nn.Module, calls: Counter[str]
) -> tuple[list[str], list[Member], str | None]:
    """torch-pruning's group as convolution paths and members, and what is wrong with it, if anything."""
    layers: list[str] = []
    members: list[Member] = []
    problem = None
    filters = len(items[0].idxs)
    for item in items:
        traced = item.dep.target.module
        if isinstance(traced, nn.Parameter):
            problem = problem or "they share a parameter that belongs to no layer"
            continue
        name = names.get(traced)
        if name is None:
            continue  # an addition, concatenation or reshape: nothing to cut
        module = model.get_submodule(name)
        side: Literal["in", "out"] = "in" if "in_channels" in item.dep.handler.__name__ else "out"
        if isinstance(module, nn.Conv2d):
            depthwise = module.groups > 1 and module.groups == module.in_channels == module.out_channels
            if depthwise:
                side = "out"
            elif module.groups > 1:
                problem = problem or f"{name} is a grouped convolution"
            if side == "out" and not depthwise:
                layers.append(name)
        elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            side = "out"
        elif not isinstance(module, nn.Linear | ZeroPadShortcut):
            problem = problem or f"cutting {name}, a {type(module).__name__}, is not supported"
        if calls[name] != 1:
            problem = problem or f"{name} runs {calls[name]} times in one forward pass"
        index = _positions(item.root_idxs, item.idxs, filters)
        if index is None:
            problem = problem or f"the filters' places in {name} could not be told"
        elif not any(member.module == name and member.side == side for member in members):
            members.append(Member(name, side, index))
    return layers, members, problem


def _positions(filters_of: Sequence[int], positions: Sequence[int], filters: int) -> torch.Tensor | None:
    """[C, m], or None where filters have different numbers of positions."""
    table: defaultdict[int, list[int]] = defaultdict(list)
    for number, position in zip(filters_of, positions, strict=True):
        table[number].append(position)
    rows = [sorted(table[number]) for number in range(filters)]
    return torch.tensor(rows) if rows and rows[0] and len({len(row) for row in rows}) == 1 else None
