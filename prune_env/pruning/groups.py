"""Which filters must go together: pruning groups, read off the labels of one traced forward pass.

Filters that share a label can only go together: one unit. Units that touch the same sides of the same layers are one
group, and one agent. Letters: C units of a group, m positions that go with one unit.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from .copies import PruningError
from .surgery import Side, channels
from .trace import Example, Trace

Plan = tuple[int, ...]
"""How many filters stay in every group, in the order of the agents."""
NOTHING = "no group of filters can be pruned: the network needs a convolution whose output feeds another layer"


@dataclass(frozen=True, eq=False)
class Member:
    """One side of a module, and which of its channels go with which filter.

    module  path of the module in the network
    side    'out' or 'in'; modules whose two sides are one (BatchNorm, grouped convolution) have 'out' alone
    index   int64 [C, m]: positions on that side's channel axis that go with each filter; m > 1 after a flatten
    """

    module: str
    side: Side
    index: torch.Tensor


@dataclass(frozen=True, eq=False)
class PruningGroup:
    """Filters that can only go together: one agent.

    name  conv_0, conv_1, ... in forward order of the first convolution
    layers    paths of the convolutions that lose these filters, in forward order
    filters   how many can go one by one: C. Of a grouped convolution, each stands for all filters of one of its groups
    members   every module side that changes when one goes
    """

    name: str
    layers: tuple[str, ...]
    filters: int
    members: tuple[Member, ...]


@dataclass(frozen=True)
class Protected:
    """Filters that stay, whatever the plan.

    layers   paths of the convolutions that they belong to, in forward order
    filters  how many there are, counted once where layers are tied
    reason   why, as the end of a sentence that begins with 'layers ... are not pruned:'
    """

    layers: tuple[str, ...]
    filters: int
    reason: str

    def __str__(self) -> str:
        return f"layers {', '.join(self.layers)} are not pruned: {self.reason}"


def find_groups(model: nn.Module, example_input: Example) -> list[PruningGroup]:
    """The groups of convolution filters that can go, in forward order.

    example_input  float [B, C_in, H, W], or a sequence of tensors for a network that takes several
    What must stay is left out with a warning that names layers and reason. A linear layer that runs at every position
    of a feature map counts as a 1x1 convolution. Raises PruningError (a ValueError) where the network cannot be
    traced or nothing can be pruned.
    """
    groups, protected = groups_and_protected(model, example_input)
    tell(groups, protected)
    return groups


def tell(groups: Sequence[PruningGroup], protected: Sequence[Protected]) -> None:
    """Warns of everything that is protected; raises PruningError where nothing can be pruned."""
    for entry in protected:
        warnings.warn(str(entry), stacklevel=3)
    if not groups:
        raise PruningError(f"{NOTHING}; {'; '.join(map(str, protected)) or 'it has no convolution'}")


def groups_and_protected(
    model: nn.Module, example_input: Example, *, progress: bool = False
) -> tuple[list[PruningGroup], list[Protected]]:
    """The groups, and what is protected and why; raises PruningError only where the network cannot be traced."""
    trace = Trace(model, example_input, progress)
    units = _units(trace)
    frozen = trace.labels.reasons()
    order = {path: number for number, path in enumerate(trace.called)}
    groups: dict[tuple[tuple[str, Side, int], ...], list[int]] = defaultdict(list)
    protected: dict[tuple[tuple[str, ...], str], int] = defaultdict(int)
    for label in sorted(units):  # labels rise in the order in which layers are first called
        sides = units[label]
        layers = _convolutions(trace, sides)
        if layers and label in frozen:
            protected[layers, frozen[label]] += 1
        elif layers:
            groups[tuple(sorted((*side, len(places)) for side, places in sides.items()))].append(label)
    result: list[PruningGroup] = []
    for labels in groups.values():
        touched = sorted(units[labels[0]], key=lambda side: (order[side[0]], side[1]))
        layers = _convolutions(trace, touched)
        if len(labels) == 1:
            protected[layers, "their filters could only go all together"] += 1
            continue
        members = tuple(Member(*side, torch.tensor([units[label][side] for label in labels])) for side in touched)
        result.append(PruningGroup(f"conv_{len(result)}", layers, len(labels), members))
    never = "they never run on the example input"
    if trace.untraced:
        never += f"; if they run in training, the pruned network may fail there: in training mode, {trace.untraced}"
    for path, module in trace.modules.items():
        if isinstance(module, _ConvNd | nn.Linear) and path not in trace.called:
            reason = "their parameters are used without calling them" if path in trace.borrowed else never
            protected[(path,), reason] = channels(module, "out")
    return result, [Protected(layers, count, reason) for (layers, reason), count in protected.items()]


def _units(trace: Trace) -> dict[int, dict[tuple[str, Side], list[int]]]:
    """Canonical label -> the sides of layers where it stands, and at which positions, ascending."""
    units: dict[int, dict[tuple[str, Side], list[int]]] = defaultdict(dict)
    for side, labels in trace.slots.items():
        for position, label in enumerate(trace.labels.canonical(labels).tolist()):
            if label:
                units[label].setdefault(side, []).append(position)
    return units


def _convolutions(trace: Trace, sides: Collection[tuple[str, Side]]) -> tuple[str, ...]:
    """Paths of the convolutions whose filters are on these sides, in forward order."""
    return tuple(
        path
        for path in trace.produced
        if (path, "out") in sides and (isinstance(trace.modules[path], _ConvNd) or path in trace.pointwise)
    )
