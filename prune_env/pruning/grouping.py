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

NOTHING_TO_PRUNE = "no group of filters can be pruned: the network needs a layer whose output feeds another one"
LINEAR_SHARE = 0.1
"""Hidden linear layers are pruned by default if they hold more than this share of the parameters. In AlexNet and VGG
they hold two thirds and more, so a network that keeps them stays large. Below a tenth they are gates and small heads:
agents with little to remove."""
EXCLUDED = "no group of filters can be pruned: exclude and only leave none; let some layers lose filters"

Sides = Mapping[tuple[str, Side], list[int]]
"""(path, side) -> channels on that side, in ascending order."""


def find_groups(model: nn.Module, example_input: Example, *, linear: bool | None = None) -> list[PruningGroup]:
    """Return the groups of filters that can be pruned, in forward order.

    A warning names the layers that cannot be pruned, and the reason.

    Args:
        model: The network, which does not change.
        example_input: float [B, C_in, H, W], or a sequence of tensors for a network with several inputs.
        linear: Whether hidden linear layers on vectors are pruned, see `groups_and_protected`.

    Raises:
        PruningError: The network cannot be traced, or no group of filters can be pruned.
    """
    groups, protected = groups_and_protected(model, example_input, linear=linear)
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
        raise PruningError(f"{found}; {'; '.join(map(str, protected)) or 'it has none'}")


def groups_and_protected(
    model: nn.Module, example_input: Example, *, linear: bool | None = None, progress: bool = False
) -> tuple[list[PruningGroup], list[Protected]]:
    """Return the groups of a network, and the filters that cannot be pruned.

    A linear layer that runs at every position of a feature map always counts as a 1x1 convolution.

    Args:
        model: The network, which does not change.
        example_input: float [B, C_in, H, W], or a sequence of tensors for a network with several inputs.
        linear: Whether linear layers on vectors whose outputs feed another layer count as 1x1 convolutions, with a
            filter for each output. None for True if such layers hold more than `LINEAR_SHARE` of the parameters.
        progress: Whether to show a progress bar on stderr.

    Raises:
        PruningError: The network cannot be traced.
    """
    trace = trace_network(model, example_input, progress)
    sides_of = _sides_of_labels(trace)
    frozen = trace.labels.reasons()
    if linear is None:
        prunable = [sides for label, sides in sides_of.items() if label not in frozen]
        linear = _hidden_share(trace, prunable) > LINEAR_SHARE
    groups: dict[tuple[tuple[str, Side, int], ...], list[int]] = defaultdict(list)
    protected: dict[tuple[tuple[str, ...], str], int] = defaultdict(int)
    for label in sorted(sides_of):  # labels ascend in the order in which layers are first called
        sides = sides_of[label]
        layers = _layers(trace, sides, linear)
        if layers and label in frozen:
            protected[layers, frozen[label]] += 1
        elif layers:
            groups[tuple(sorted((*side, len(places)) for side, places in sides.items()))].append(label)
    found: list[PruningGroup] = []
    for labels in groups.values():
        if len(labels) == 1:
            layers = _layers(trace, sides_of[labels[0]], linear)
            protected[layers, "their filters could only be removed all together"] += 1
        else:
            found.append(_group(trace, f"conv_{len(found)}", [sides_of[label] for label in labels], linear))
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


def _group(trace: Trace, name: str, filters: Sequence[Sides], linear: bool) -> PruningGroup:
    """The group of some filters, each given by the sides that its label occurs on."""
    order = {path: number for number, path in enumerate(trace.called)}
    sides = sorted(filters[0], key=lambda side: (order[side[0]], side[1]))
    members = tuple(Member(*side, torch.tensor([channels[side] for channels in filters])) for side in sides)
    return PruningGroup(name, _layers(trace, sides, linear), len(filters), members)


def _layers(trace: Trace, sides: Collection[tuple[str, Side]], linear: bool) -> tuple[str, ...]:
    """Paths of the layers whose filters are on these sides, in forward order.

    Args:
        trace: The traced network.
        sides: The sides that the filters occur on.
        linear: Whether linear layers on vectors have filters, if a layer reads them: the last one's are the logits.
    """
    kinds = (_ConvNd, nn.Linear) if linear and any(side == "in" for _, side in sides) else (_ConvNd,)
    return tuple(
        path
        for path in trace.produced
        if (path, "out") in sides and (isinstance(trace.modules[path], kinds) or path in trace.pointwise)
    )


def _hidden_share(trace: Trace, prunable: Sequence[Sides]) -> float:
    """Share of the parameters in linear layers whose filters are not tied to those of a convolution.

    Args:
        trace: The traced network.
        prunable: The sides of every filter that can be pruned.
    """
    hidden = {path for sides in prunable if not _layers(trace, sides, False) for path in _layers(trace, sides, True)}
    sizes = {path: sum(p.numel() for p in trace.modules[path].parameters()) for path in ("", *hidden)}
    return sum(sizes[path] for path in hidden) / sizes[""]


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
