"""How much the outputs of a network change when a filter is removed, to first order.

A filter is removed by setting it to zero where it is read. With a gate m_c = 1 in front of the readers of every filter
c, removing it changes the outputs z of an image by -dz/dm_c to first order. One backward pass gives r . dz/dm_c for all
filters of all images, where r ~ N(0, I) is drawn for every image. Since E[(r . dz)^2] = |dz|^2, its mean square over
the images estimates the mean squared change, which is given as a fraction of the variance of the outputs over images.
No labels are used, and no accuracy is looked at.

Other importances rank the filters of one group; this one also compares groups, and networks. Gates in front of readers
are those of group Fisher pruning (Liu et al., ICML 2021, arXiv:2108.00708, section 3.2), which differentiates the loss.

Letters: N images, C filters of a group, K channels that a module reads, m channels that belong to one filter.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from ..common.device import seeded, with_gradients
from ..common.failure import described
from ..common.warn import warn
from .copies import shared_copy
from .forward import first_input, with_first_input
from .groups import PruningGroup
from .modules import spec_of

Gates = dict[str, torch.Tensor]
"""Path of a reader -> gates of its input channels, [N, K]."""


@with_gradients
def output_changes(
    model: nn.Module, groups: Sequence[PruningGroup], batches: Iterable[torch.Tensor], seed: int = 0
) -> dict[str, torch.Tensor]:
    """Return the change of the outputs when a single filter is removed.

    Args:
        model: The network, which does not change. It returns one tensor, and runs in eval mode.
        groups: Its pruning groups.
        batches: Normalised images, float [N, C, H, W] each, on the device of the network.
        seed: Seed of the random directions r.

    Returns:
        Name of a group -> mean squared change for each of its filters, as a fraction of the outputs' variance, float64
        [C] on the CPU. Where the outputs cannot be differentiated, zeros, and a warning.
    """
    generator = torch.Generator().manual_seed(seed)
    network = shared_copy(model).eval().requires_grad_(False)
    changes: dict[str, torch.Tensor] = {}
    outputs = _Spread()
    fault = "no_grad, inference_mode or detach within forward"
    for images in batches:
        with seeded(images.device, seed), _gated(network, groups, len(images)) as gates:
            output = network(images)
            outputs.add(output.detach().flatten(1).double().cpu())
            directions = torch.randn(output.shape, generator=generator).to(output)
            try:
                slopes = _slopes((output * directions).sum(), gates)
            except RuntimeError as error:  # a custom function without backward, or tensors that were overwritten
                slopes, fault = {}, described(error)
        for group in groups:
            if (slope := _filter_slopes(slopes, group)) is not None:
                changes[group.name] = changes.get(group.name, 0) + slope.square().sum(0)
    if unknown := [layer for group in groups if group.name not in changes for layer in group.layers]:
        warn(
            f"how much the outputs change without filters of layers {', '.join(unknown)} is unknown, and least-change "
            f"plans take an average: the outputs do not depend on them, or cannot be differentiated ({fault})"
        )
    variance = outputs.squares
    none = {group.name: torch.zeros(group.filters, dtype=torch.float64) for group in groups}
    return none | {name: change / variance if variance > 0 else change for name, change in changes.items()}


class _Spread:
    """Squared distances of vectors from their mean, from one batch after another: maps take much memory."""

    def __init__(self) -> None:
        self._count, self.squares, self._mean = 0, 0.0, torch.zeros(0)

    def add(self, batch: torch.Tensor) -> None:
        """Add vectors, float64 [N, entries]."""
        count, mean = len(batch), batch.mean(0)
        self.squares += float((batch - mean).square().sum())
        if self._count:  # the parallel algorithm of Chan, Golub & LeVeque 1979
            gap, total = mean - self._mean, self._count + count
            self.squares += float(gap.square().sum()) * self._count * count / total
            mean = self._mean + gap * count / total
        self._count, self._mean = self._count + count, mean


def accumulated(changes: torch.Tensor, order: torch.Tensor) -> np.ndarray:
    """Return the change when the k least important filters of a group are removed, float64 [C + 1].

    The changes of single filters add up, each divided by the fraction of the group's filters that is left before it is
    removed: the fewer are left, the more each of them counts.

    Args:
        changes: The change of each filter, [C].
        order: Indices of the filters, the most important first, [C].
    """
    filters = len(order)
    left = np.arange(filters, 0, -1) / filters
    return np.concatenate(([0.0], np.cumsum(changes[order].flip(0).numpy() / left)))


@contextmanager
def _gated(network: nn.Module, groups: Sequence[PruningGroup], images: int) -> Iterator[Gates]:
    """Put a gate in front of each channel that a reader reads; the gates are there after a forward pass.

    They stay for the backward pass, in which checkpoints run parts of the network again.
    """
    gates: Gates = {}
    readers = dict.fromkeys(member.module for group in groups for member in group.members if member.side == "in")
    handles = [
        network.get_submodule(path).register_forward_pre_hook(partial(_gate, gates, path, images), with_kwargs=True)
        for path in readers
    ]
    try:
        yield gates
    finally:
        for handle in handles:
            handle.remove()


def _gate(
    gates: Gates, path: str, images: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Multiply what a module reads by its gates. A module that is called several times has the same gates each time."""
    features, spec = first_input(args, kwargs), spec_of(module)
    assert spec is not None, "groups contain registered modules only"
    if len(features) % images:
        return None  # the first axis is not that of the images
    channels = features.movedim(spec.channel_axis, -1)  # [N * windows, ..., K]
    gate = gates.setdefault(path, features.new_ones(images, channels.shape[-1]).requires_grad_())
    each = gate.repeat_interleave(len(features) // images, 0)
    each = each.view(len(features), *[1] * (channels.ndim - 2), -1)
    return with_first_input((channels * each).movedim(-1, spec.channel_axis), args, kwargs)


def _slopes(total: torch.Tensor, gates: Gates) -> Gates:
    """Return the derivatives with respect to the gates, float64 [N, K] each, where there are any."""
    if not gates or not total.requires_grad:
        return {}
    found = torch.autograd.grad(total, list(gates.values()), allow_unused=True)
    return {path: slope.double().cpu() for path, slope in zip(gates, found, strict=True) if slope is not None}


def _filter_slopes(slopes: Gates, group: PruningGroup) -> torch.Tensor | None:
    """Return the derivative with respect to every filter of a group, [N, C], or None if no reader has one."""
    found = [
        slopes[member.module][:, member.index].sum(-1)
        for member in group.members
        if member.side == "in" and member.module in slopes
    ]
    return sum(found[1:], found[0]) if found else None
