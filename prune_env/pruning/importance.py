"""Which filters matter: scores of a group's filters, higher for those that should stay.

Every method scores each convolution (or BatchNorm) of the group, divides by the layer's mean so that layers of
different scale count alike, and averages over the layers. Letters: C filters of a group.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from .groups import PruningGroup

Batch = tuple[torch.Tensor, torch.Tensor]
"""Network input [B, C_in, H, W] and labels [B]."""
WeightScore = Callable[[torch.Tensor], torch.Tensor]
"""Filters [C, D], one a row -> scores [C]."""


def l1(filters: torch.Tensor) -> torch.Tensor:
    """Sum of absolute weights (Li et al., ICLR 2017)."""
    return filters.abs().sum(1)


def l2(filters: torch.Tensor) -> torch.Tensor:
    """Euclidean norm."""
    return filters.norm(dim=1)


def fpgm(filters: torch.Tensor) -> torch.Tensor:
    """Sum of distances to the other filters: small near the geometric median, where a filter is replaceable
    (He et al., CVPR 2019, equation 4)."""
    return torch.cdist(filters, filters, compute_mode="donot_use_mm_for_euclid_dist").sum(1)


WEIGHT_SCORES: dict[str, WeightScore] = {"l1": l1, "l2": l2, "fpgm": fpgm}
METHODS = (*WEIGHT_SCORES, "bn_scale", "taylor", "random")


def scores(
    method: str,
    model: nn.Module,
    groups: Sequence[PruningGroup],
    *,
    batches: Iterable[Batch] = (),
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """Agent id -> float32 scores [C]; the mean over a group's filters is 1.

    l1, l2, fpgm  of the weights
    bn_scale      |gamma| of the group's BatchNorms (Liu et al., ICCV 2017)
    taylor        first order (Molchanov et al., CVPR 2019, equation 8): sum over the filter's weights of (g w)^2,
                  averaged over `batches`
    random        uniform, drawn from `seed`
    Raises ValueError for an unknown method, for bn_scale in a group without BatchNorm, for taylor without batches.
    """
    if method in WEIGHT_SCORES:
        return _over_layers(model, groups, lambda name: WEIGHT_SCORES[method](_rows(model, name).float()))
    if method == "bn_scale":
        return {group.agent_id: _bn_scale(model, group) for group in groups}
    if method == "taylor":
        return _taylor(model, groups, batches)
    if method == "random":
        generator = torch.Generator().manual_seed(seed)
        return {group.agent_id: _relative(torch.rand(group.filters, generator=generator)) for group in groups}
    raise ValueError(f"importance {method!r} is unknown; choose one of {', '.join(METHODS)}")


def ranking(scores: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Agent id -> filters int64 [C], the most important first; equals in order of index."""
    return {agent: torch.sort(score, descending=True, stable=True).indices for agent, score in scores.items()}


def _relative(score: torch.Tensor) -> torch.Tensor:
    mean = score.mean()
    return score / mean if mean > 0 else torch.ones_like(score)


def _rows(model: nn.Module, name: str) -> torch.Tensor:
    weight = model.get_submodule(name).weight
    assert isinstance(weight, torch.Tensor)
    return weight.detach().flatten(1).cpu()  # [C_out, D]


def _over_layers(
    model: nn.Module, groups: Sequence[PruningGroup], score: Callable[[str], torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The mean of `score(layer)` [C_out] over the layers of each group, in the order of the group's filters."""
    result = {}
    for group in groups:
        places = {member.module: member.index[:, 0] for member in group.members if member.side == "out"}
        layers = [_relative(score(name)[places[name]]) for name in group.layers]
        result[group.agent_id] = torch.stack(layers).mean(0)
    return result


def _bn_scale(model: nn.Module, group: PruningGroup) -> torch.Tensor:
    found = []
    for member in group.members:
        module = model.get_submodule(member.module)
        if isinstance(module, nn.BatchNorm2d) and module.weight is not None:
            found.append(_relative(module.weight.detach().abs().float().cpu()[member.index[:, 0]]))
    if not found:
        raise ValueError(
            f"importance 'bn_scale' needs a BatchNorm behind layers {', '.join(group.layers)}; choose another method"
        )
    return torch.stack(found).mean(0)


def _taylor(model: nn.Module, groups: Sequence[PruningGroup], batches: Iterable[Batch]) -> dict[str, torch.Tensor]:
    model = copy.deepcopy(model).eval().requires_grad_()
    names = {name for group in groups for name in group.layers}
    totals: dict[str, torch.Tensor] = {}
    count = 0
    for images, labels in batches:
        model.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        count += 1
        for name in names:
            weight = model.get_submodule(name).weight
            assert isinstance(weight, torch.Tensor)
            assert weight.grad is not None
            change = (weight.grad * weight.detach()).flatten(1).square().sum(1)
            totals[name] = totals.get(name, torch.zeros_like(change)) + change
    if count == 0:
        raise ValueError("importance 'taylor' needs batches of (images, labels); give those of the calibration split")
    return _over_layers(model, groups, lambda name: totals[name] / count)
