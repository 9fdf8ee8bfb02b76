"""The proof that surgery is right: cutting filters out equals switching them off.

A filter is switched off where its output is read: zeros at the inputs of every layer that consumes it, behind
BatchNorm and activation, so that a shift (beta != 0) does not leak. Runs in float32 on the CPU, in eval mode.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from .groups import PruningGroup
from .surgery import PruningError, Removed, cut, removed_positions, twin

TOLERANCE = 1e-4
JOINT = "joint"


def prove(
    model: nn.Module,
    groups: Sequence[PruningGroup],
    ranking: Mapping[str, torch.Tensor] | None,
    samples: torch.Tensor,
    plans_per_group: int = 2,
    seed: int = 0,
) -> dict[str, float]:
    """How far the cut network is from the one with the same filters switched off, for random plans.

    ranking  which filters go first; None for random filters
    samples  float [B, C, H, W], the network's input
    Returns the largest difference of outputs as a fraction of the unpruned network's largest output: for each group
    alone under its agent id, for all groups together under 'joint'. Infinite where the cut network does not run.
    """
    check = _Check(model, groups, ranking, samples, seed)
    result = {}
    for number, group in enumerate(groups):
        result[group.agent_id] = max(check.difference([number])[0] for _ in range(plans_per_group))
    result[JOINT] = max(check.difference(range(len(groups)))[0] for _ in range(plans_per_group))
    return result


def proven_groups(
    model: nn.Module, groups: Sequence[PruningGroup], samples: torch.Tensor, *, plans_per_group: int = 1, seed: int = 0
) -> list[PruningGroup]:
    """The groups for which cutting equals switching off to 1e-4, renumbered conv_0, conv_1, ...

    A group that fails is dropped with a warning that names its layers and the difference. Raises PruningError where
    none is left, or where the groups hold alone but not together.
    """
    check = _Check(model, groups, None, samples, seed)
    proven = []
    for number, group in enumerate(groups):
        for _ in range(plans_per_group):
            difference, reason = check.difference([number])
            if not difference <= TOLERANCE:
                warnings.warn(
                    f"layers {', '.join(group.layers)} are not pruned: cutting their filters is not the same as "
                    f"switching them off ({reason})",
                    stacklevel=2,
                )
                break
        else:
            proven.append(number)
    if not proven:
        raise PruningError("no group of filters can be pruned: all fail the proof; warnings say how")
    difference, reason = check.difference(proven)
    if not difference <= TOLERANCE:
        raise PruningError(f"the groups can be cut one at a time but not together ({reason})")
    return [replace(groups[number], agent_id=f"conv_{place}") for place, number in enumerate(proven)]


@contextmanager
def switched_off(
    model: nn.Module, groups: Sequence[PruningGroup], keep: Mapping[str, torch.Tensor | Sequence[int]]
) -> Iterator[nn.Module]:
    """Within the block, `model` computes as if only the filters in `keep` (agent id -> indices) were there.

    Its shape stays; hooks at the inputs of the consuming layers put zeros, and are gone after the block.
    """
    with _zeros_at_consumers(model, removed_positions(groups, keep)):
        yield model


@contextmanager
def _zeros_at_consumers(model: nn.Module, removed: Removed) -> Iterator[None]:
    handles = [
        model.get_submodule(path).register_forward_pre_hook(partial(_zero_channels, gone))
        for (path, side), gone in removed.items()
        if side == "in"
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _zero_channels(gone: torch.Tensor, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    images, *rest = inputs
    if isinstance(module, nn.Linear):
        axis = -1
    elif isinstance(module, _ConvNd):
        axis = -1 - len(module.kernel_size)
    else:
        axis = 1
    return (images.index_fill(axis, gone.to(images.device), 0.0), *rest)


class _Check:
    """Draws plans and compares the two networks."""

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[PruningGroup],
        ranking: Mapping[str, torch.Tensor] | None,
        samples: torch.Tensor,
        seed: int,
    ) -> None:
        self._groups, self._ranking = groups, ranking
        self._generator = torch.Generator().manual_seed(seed)
        self._network = twin(model).cpu().float().eval()
        self._samples = samples.detach().cpu().float()
        # The unpruned network's outputs are the scale: those of a pruned one may all but vanish.
        self._scale = max(float(self._run(self._network).abs().max()), torch.finfo(torch.float32).tiny)

    def difference(self, chosen: Sequence[int]) -> tuple[float, str]:
        """Relative difference for one random plan of the chosen groups, and what to say about it."""
        keep = {group.agent_id: torch.arange(group.filters) for group in self._groups}
        for number in chosen:
            keep[self._groups[number].agent_id] = self._draw(self._groups[number])
        removed = removed_positions(self._groups, keep)
        try:
            found = self._run(cut(self._network, removed, share=True))
            with _zeros_at_consumers(self._network, removed):
                expected = self._run(self._network)
        except Exception as error:
            return float("inf"), f"the cut network does not run: {type(error).__name__}: {error}"
        if found.shape != expected.shape:
            return float("inf"), f"the output changes its shape from {tuple(expected.shape)} to {tuple(found.shape)}"
        worst = float((found - expected).abs().max()) / self._scale
        worst = worst if worst == worst else float("inf")  # not a number
        return worst, f"outputs differ by {worst:.2g} of the largest"

    def _draw(self, group: PruningGroup) -> torch.Tensor:
        """Indices that stay, ascending: between a quarter and three quarters of the filters, at least one."""
        low, high = max(1, group.filters // 4), max(1, 3 * group.filters // 4)
        count = int(torch.randint(low, high + 1, (), generator=self._generator))
        if self._ranking is None:
            order = torch.randperm(group.filters, generator=self._generator)
        else:
            order = self._ranking[group.agent_id]
        return order[:count].sort().values

    def _run(self, network: nn.Module) -> torch.Tensor:
        with torch.inference_mode():
            output = network(self._samples)
        if not isinstance(output, torch.Tensor):
            raise PruningError(f"the network must return one tensor, got {type(output).__name__}")
        return output
