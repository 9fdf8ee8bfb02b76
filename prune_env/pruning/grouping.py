"""Find the pruning groups of a network from the labels of one traced forward pass.

Filters that are tied share a label. Labels that occur on the same sides of the same modules belong to one group.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from ..common.warn import warn
from .errors import PruningError
from .forward import Example
from .groups import Member, Protected, PruningGroup, Side
from .modules import channels
from .trace import Trace
from .tracing import trace_network

NOTHING_TO_PRUNE = "no group of filters can be pruned: the network needs a convolution whose output feeds another layer"
EXCLUDED = "no group of filters can be pruned: exclude and only leave none; let some layers lose filters"

Sides = Mapping[tuple[str, Side], list[int]]
"""(path, side) -> channels on that side, in ascending order."""


def find_groups(model: nn.Module, example_input: Example) -> list[PruningGroup]:
    """Return the groups of convolution filters that can be pruned, in forward order.

    A linear layer that runs at every position of a feature map counts as a 1x1 convolution. A warning names the layers
    that cannot be pruned, and the reason.

    Args:
        model: The network, which does not change.
        example_input: float [B, C_in, H, W], or a sequence of tensors for a network with several inputs.

    Raises:
        PruningError: The network cannot be traced, or no group of filters can be pruned.
    """
    groups, protected = groups_and_protected(model, example_input)
    warn_protected(protected)
    require_groups(groups, protected)
    return groups


def warn_protected(protected: Sequence[Protected]) -> None:
    """Warn of all layers that cannot be pruned, but not of those that settings exclude."""
    for entry in protected:
        if not entry.excluded:
            warn(str(entry))


def require_groups(groups: Sequence[PruningGroup], protected: Sequence[Protected]) -> None:
    """Check that a network has something to prune.

    Raises:
        PruningError: It has no group; the message names the protected layers.
    """
    if not groups:
        found = EXCLUDED if any(entry.excluded for entry in protected) else NOTHING_TO_PRUNE
        raise PruningError(f"{found}; {'; '.join(map(str, protected)) or 'it has no convolution'}")


def groups_and_protected(
    model: nn.Module, example_input: Example, *, progress: bool = False
) -> tuple[list[PruningGroup], list[Protected]]:
    """Return the groups of a network, and the filters that cannot be pruned.

    Args:
        model: The network, which does not change.
        example_input: float [B, C_in, H, W], or a sequence of tensors for a network with several inputs.
        progress: Whether to show a progress bar on stderr.

    Raises:
        PruningError: The network cannot be traced.
    """
    trace = trace_network(model, example_input, progress)
    sides_of = _sides_of_labels(trace)
    frozen = trace.labels.reasons()
    groups: dict[tuple[tuple[str, Side, int], ...], list[int]] = defaultdict(list)
    protected: dict[tuple[tuple[str, ...], str], int] = defaultdict(int)
    for label in sorted(sides_of):  # labels ascend in the order in which layers are first called
        sides = sides_of[label]
        layers = _convolutions(trace, sides)
        if layers and label in frozen:
            protected[layers, frozen[label]] += 1
        elif layers:
            groups[tuple(sorted((*side, len(places)) for side, places in sides.items()))].append(label)
    found: list[PruningGroup] = []
    for labels in groups.values():
        if len(labels) == 1:
            layers = _convolutions(trace, sides_of[labels[0]])
            protected[layers, "their filters could only be removed all together"] += 1
        else:
            found.append(_group(trace, f"conv_{len(found)}", [sides_of[label] for label in labels]))
    entries = [Protected(layers, count, reason) for (layers, reason), count in protected.items()]
    return found, entries + _without_filters(trace)


def _sides_of_labels(trace: Trace) -> dict[int, dict[tuple[str, Side], list[int]]]:
    """Canonical label -> the module sides that it occurs on, and its channels there."""
    found: dict[int, dict[tuple[str, Side], list[int]]] = defaultdict(dict)
    for side, labels in trace.slots.items():
        for channel, label in enumerate(trace.labels.canonical(labels).tolist()):
            if label:
                found[label].setdefault(side, []).append(channel)
    return found


def _group(trace: Trace, name: str, filters: Sequence[Sides]) -> PruningGroup:
    """The group of some filters, each given by the sides that its label occurs on."""
    order = {path: number for number, path in enumerate(trace.called)}
    sides = sorted(filters[0], key=lambda side: (order[side[0]], side[1]))
    members = tuple(Member(*side, torch.tensor([channels[side] for channels in filters])) for side in sides)
    return PruningGroup(name, _convolutions(trace, sides), len(filters), members)


def _convolutions(trace: Trace, sides: Collection[tuple[str, Side]]) -> tuple[str, ...]:
    """Paths of the convolutions whose filters are on these sides, in forward order."""
    return tuple(
        path
        for path in trace.produced
        if (path, "out") in sides and (isinstance(trace.modules[path], _ConvNd) or path in trace.pointwise)
    )


def _without_filters(trace: Trace) -> list[Protected]:
    """Convolutions and linear layers that were not traced, with all their filters."""
    never = "they never run on the example input"
    if trace.untraced:
        never += f"; if they run in training, the pruned network may fail there: in training mode, {trace.untraced}"
    protected = []
    for path, module in trace.modules.items():
        if not isinstance(module, _ConvNd | nn.Linear):
            continue
        if path in trace.enclosed:
            reason = f"they are inside {trace.enclosed[path]}, which is traced as a whole"
        elif path in trace.called:
            continue
        else:
            reason = "their parameters are used without calling them" if path in trace.borrowed else never
        protected.append(Protected((path,), channels(module, "out"), reason))
    return protected
