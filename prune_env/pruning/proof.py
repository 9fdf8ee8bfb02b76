"""The proof that the cut is right: cutting filters out equals switching them off.

The removed filters are set to zero where they are consumed, after their BatchNorm and activation, so that a shift
beta != 0 does not leak; the whole network then gives the same output as the one without them.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from .groups import PruningError, PruningGroup, numbered
from .surgery import build_from_indices

TOLERANCE = 1e-4
JOINT = "all"


def prove(
    model: nn.Module, groups: Sequence[PruningGroup], samples: torch.Tensor, *, plans: int = 2, seed: int = 0
) -> dict[str, float]:
    """Largest difference between cut and switched-off network, in eval mode and float32.

    Per agent id with `plans` random choices of filters of that group alone, and under 'all' with as many of all groups
    together. Differences are relative to the largest output where that is above 1; infinite where the cut network does
    not even run.

    samples  network input, float32 [B, C_in, H, W]
    """
    generator = torch.Generator().manual_seed(seed)
    reference = copy.deepcopy(model).eval().float().cpu()
    samples = samples.float().cpu()

    def some(group: PruningGroup) -> torch.Tensor:
        kept = int(torch.randint(1, max(2, group.filters), (), generator=generator))
        return torch.randperm(group.filters, generator=generator)[:kept].sort().values

    everything = {group.agent_id: torch.arange(group.filters) for group in groups}
    worst = {
        group.agent_id: max(
            _difference(reference, groups, everything | {group.agent_id: some(group)}, samples) for _ in range(plans)
        )
        for group in groups
    }
    worst[JOINT] = max(
        _difference(reference, groups, {group.agent_id: some(group) for group in groups}, samples) for _ in range(plans)
    )
    return worst


def proven_groups(
    model: nn.Module, groups: Sequence[PruningGroup], samples: torch.Tensor, *, seed: int = 0
) -> list[PruningGroup]:
    """The groups that pass the proof, renumbered; a warning names every other one and its difference.

    Raises PruningError where none passes, or where groups that pass alone fail together.
    """
    differences = prove(model, groups, samples, seed=seed)
    passed = []
    for group in groups:
        if differences[group.agent_id] <= TOLERANCE:
            passed.append(group)
        else:
            warnings.warn(
                f"layers {', '.join(group.layers)} are not pruned: cutting their filters differs from switching them off "
                f"by {differences[group.agent_id]:.2g}",
                stacklevel=2,
            )
    if not passed:
        raise PruningError(f"no group of {type(model).__name__} passes the proof that cutting equals switching off")
    passed = numbered(passed)
    together = differences[JOINT] if len(passed) == len(groups) else prove(model, passed, samples, seed=seed)[JOINT]
    if not together <= TOLERANCE:
        raise PruningError(
            f"groups of {type(model).__name__} that can be cut alone cannot be cut together (difference {together:.2g})"
        )
    return passed


def switched_off(
    model: nn.Module, groups: Sequence[PruningGroup], kept: Mapping[str, torch.Tensor], samples: torch.Tensor
) -> torch.Tensor:
    """Output of the whole network while every consumer sees zeros in place of the removed filters."""
    handles = []
    for group in groups:
        removed = torch.ones(group.filters, dtype=torch.bool)
        removed[kept[group.agent_id]] = False
        for member in group.members:
            if member.side == "in":
                hook = _zeroing(member.index[removed].flatten())
                handles.append(model.get_submodule(member.module).register_forward_pre_hook(hook))
    try:
        with torch.inference_mode():
            return model(samples)
    finally:
        for handle in handles:
            handle.remove()


def _zeroing(positions: torch.Tensor):  # type: ignore[no-untyped-def]
    def hook(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (inputs[0].index_fill(1, positions, 0.0), *inputs[1:])

    return hook


def _difference(
    model: nn.Module, groups: Sequence[PruningGroup], kept: Mapping[str, torch.Tensor], samples: torch.Tensor
) -> float:
    expected = switched_off(model, groups, kept, samples)
    try:
        network = build_from_indices(model, groups, kept)
        with torch.inference_mode():
            output = network(samples)
    except (RuntimeError, IndexError, ValueError):  # shapes that no longer fit: a wrong group
        return float("inf")
    if output.shape != expected.shape or not torch.isfinite(output).all():
        return float("inf")
    return float((output - expected).abs().max() / expected.abs().max().clamp(min=1))
