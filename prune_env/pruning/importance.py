"""How important filters are: one score for each filter of a group, computed once on the original network.

A group may contain several layers (a residual stream). The scores of each layer are divided by their mean, so that all
layers count alike, and the group's score is the mean over its layers: 1 is an average filter. In a group of one layer
this is the layer's own score up to a factor.
Letters: C filters of a group, K filters of a layer, W weights of a filter.

Example:
    Scores of your own, for `EnvConfig(importance="max_weight")` or `scores("max_weight", ...)`:

    >>> @register_importance("max_weight")
    ... def max_weight(model, groups, batches, seed):
    ...     return by_layer(groups, lambda path: filter_weights(model, path).abs().amax(1))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvTransposeNd

from ..common.device import with_gradients
from ..common.fingerprints import qualified_name
from ..common.settings import Seed, checked
from ..data.objective import cross_entropy
from .copies import shared_copy
from .groups import PruningGroup
from .modules import channels
from .output_change import output_changes

Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]
"""Normalised images [B, C, H, W] and their labels [B, ...]."""

ImportanceFunction = Callable[[nn.Module, Sequence[PruningGroup], Batches, int], Mapping[str, torch.Tensor]]
"""(model, groups, batches, seed) -> name of a group -> scores of its filters [C]. The model must not be changed."""


@dataclass(frozen=True)
class Importance:
    """A way to score filters."""

    function: ImportanceFunction
    needs_batches: bool = False
    """Whether it uses images and labels; otherwise an environment passes none."""


IMPORTANCES: dict[str, Importance] = {}
"""Name -> importance."""


def register_importance(
    name: str, *, needs_batches: bool = False
) -> Callable[[ImportanceFunction], ImportanceFunction]:
    """Return a decorator that registers a function that scores filters.

    The function is called with the network, its pruning groups, batches of normalised images and labels, and a seed. It
    returns scores for every group, float [C]; more is more important. `by_layer` combines scores of a group's layers.

    Args:
        name: The name for `EnvConfig.importance`.
        needs_batches: Whether the function uses the batches, which are empty otherwise.

    Raises:
        ValueError: Another function has the name.
    """

    def register(function: ImportanceFunction) -> ImportanceFunction:
        known = IMPORTANCES.get(name)
        if known is not None and qualified_name(known.function) != qualified_name(function):
            raise ValueError(f"importance {name!r} is already registered; choose another name")
        IMPORTANCES[name] = Importance(function, needs_batches)
        return function

    return register


def find(importance: str | ImportanceFunction) -> Importance:
    """Return the importance of a registered name or of a function, which gets batches.

    Raises:
        ValueError: The name is unknown.
    """
    if not isinstance(importance, str):
        return Importance(importance, needs_batches=True)
    if importance not in IMPORTANCES:
        raise ValueError(
            f"importance {importance!r} is unknown; choose one of {', '.join(IMPORTANCES)}, register your own with "
            "prune_env.pruning.importance.register_importance, or give a function"
        )
    return IMPORTANCES[importance]


@with_gradients
def scores(
    importance: str | ImportanceFunction,
    model: nn.Module,
    groups: Sequence[PruningGroup],
    *,
    batches: Batches = (),
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """Return the importance of the filters of every group.

    Args:
        importance: A registered name, or a function as for `register_importance`.
        model: The original network, which does not change.
        groups: Its pruning groups.
        batches: Normalised images and labels, for `taylor` and others that need them.
        seed: Seed for `random`.

    Returns:
        Name of a group -> scores of its filters, float32 [C] on the CPU; more is more important.

    Raises:
        ValueError: The name is unknown, the importance cannot score a group, or its scores have another shape or are
            not finite.
    """
    seed = checked("seed", seed, Seed)
    found = find(importance).function(model, groups, batches, seed)
    name = importance if isinstance(importance, str) else qualified_name(importance)
    result = {}
    for group in groups:
        where = f"importance {name!r} of group {group.name} ({', '.join(group.layers)})"
        if group.name not in found:
            raise ValueError(f"{where} is missing; return scores for every group")
        result[group.name] = score = torch.as_tensor(found[group.name]).detach().float().cpu()
        if score.shape != (group.filters,):
            raise ValueError(
                f"{where} has shape {tuple(score.shape)}, expected ({group.filters},): one for each filter"
            )
        if not score.isfinite().all():
            raise ValueError(f"{where} is not finite; check the network's weights")
    return result


def ranking(scores: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the order of the filters: name of a group -> indices, the most important filter first, int64 [C].

    Filters with equal scores keep the order of their indices.
    """
    return {name: score.argsort(descending=True, stable=True) for name, score in scores.items()}


def by_layer(groups: Sequence[PruningGroup], score: Callable[[str], torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the scores of every group, averaged over its layers.

    Args:
        groups: The pruning groups.
        score: Path of a layer -> non-negative scores of its filters, float [K].

    Returns:
        Name of a group -> scores of its filters [C].
    """
    return {group.name: _mean_over_layers(group, group.layers, score) for group in groups}


def filter_weights(model: nn.Module, path: str) -> torch.Tensor:
    """Return the weights of a convolution or linear layer with a row for every filter, detached, float32 [K, W]."""
    return _rows(model, path, _weight(model, path).detach()).float()


def l1_norm(weight: torch.Tensor) -> torch.Tensor:
    """Return the sum of the absolute weights of every filter, [K, W] -> [K] (Li et al., ICLR 2017, section 3.1)."""
    return weight.abs().sum(1)


def l2_norm(weight: torch.Tensor) -> torch.Tensor:
    """Return the Euclidean norm of every filter, [K, W] -> [K] (He et al., IJCAI 2018, equation 2)."""
    return weight.square().sum(1).sqrt()


def geometric_median(weight: torch.Tensor) -> torch.Tensor:
    """Return the sum of the distances to all filters of the layer, [K, W] -> [K] (FPGM, He et al., CVPR 2019, eq. 4).

    A filter near the geometric median can be replaced by the others, so small sums are unimportant.
    """
    weight = weight.double()  # cdist multiplies matrices, which is fast but exact enough only in double precision
    return torch.cdist(weight, weight).sum(1).float()


def taylor_expansion(weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Return the squared first-order change of the loss without each weight, summed over a filter: [K, W] x 2 -> [K].

    Molchanov et al., CVPR 2019, equations 6 and 7.
    """
    return (weight * gradient).square().sum(1)


@register_importance("l1")
def _l1(model: nn.Module, groups: Sequence[PruningGroup], batches: Batches, seed: int) -> dict[str, torch.Tensor]:
    return by_layer(groups, lambda path: l1_norm(filter_weights(model, path)))


@register_importance("l2")
def _l2(model: nn.Module, groups: Sequence[PruningGroup], batches: Batches, seed: int) -> dict[str, torch.Tensor]:
    return by_layer(groups, lambda path: l2_norm(filter_weights(model, path)))


@register_importance("bn_scale")
def _bn_scale(model: nn.Module, groups: Sequence[PruningGroup], batches: Batches, seed: int) -> dict[str, torch.Tensor]:
    """Absolute BatchNorm scale (network slimming, Liu et al., ICCV 2017)."""
    result = {}
    for group in groups:
        members = {member.module: model.get_submodule(member.module) for member in group.members}
        norms = [path for path, module in members.items() if isinstance(module, _NormBase) and module.affine]
        if not norms:
            raise ValueError(
                f"importance 'bn_scale' needs a BatchNorm with a scale behind every layer; group {group.name} "
                f"({', '.join(group.layers)}) has none: choose another importance, or exclude the layer (linear=False "
                "excludes all hidden linear layers)"
            )
        result[group.name] = _mean_over_layers(group, norms, lambda path: _weight(model, path).detach().float().abs())
    return result


@register_importance("fpgm")
def _fpgm(model: nn.Module, groups: Sequence[PruningGroup], batches: Batches, seed: int) -> dict[str, torch.Tensor]:
    return by_layer(groups, lambda path: geometric_median(filter_weights(model, path)))


@register_importance("taylor", needs_batches=True)
def _taylor(model: nn.Module, groups: Sequence[PruningGroup], batches: Batches, seed: int) -> dict[str, torch.Tensor]:
    """First-order Taylor expansion of the cross-entropy in eval mode, averaged over batches."""
    copy = shared_copy(model).eval().requires_grad_(False)
    weights = {path: _weight(copy, path).requires_grad_() for group in groups for path in group.layers}
    total = {
        path: torch.zeros(channels(copy.get_submodule(path), "out"), device=weight.device)
        for path, weight in weights.items()
    }
    count = 0
    for images, labels in batches:
        device = next(iter(weights.values())).device
        images = images.to(device)
        loss = cross_entropy(0.0)(copy(images), images, labels.to(device))
        # Layers of another output than the chosen one have no effect on the loss.
        gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True, materialize_grads=True)
        for (path, weight), gradient in zip(weights.items(), gradients, strict=True):
            total[path] += taylor_expansion(*(_rows(copy, path, tensor.detach()) for tensor in (weight, gradient)))
        count += 1
    if count == 0:
        raise ValueError("importance 'taylor' needs batches of (normalised images, labels), but there are none")
    return by_layer(groups, lambda path: total[path] / count)


@register_importance("output_change", needs_batches=True)
def _output_change(
    model: nn.Module, groups: Sequence[PruningGroup], batches: Batches, seed: int
) -> dict[str, torch.Tensor]:
    """Squared first-order change of the outputs without a filter, see `output_change`; no labels are used."""
    device = next(model.parameters()).device
    return output_changes(model, groups, (images.to(device) for images, _ in batches), seed)


@register_importance("random")
def _random(model: nn.Module, groups: Sequence[PruningGroup], batches: Batches, seed: int) -> dict[str, torch.Tensor]:
    """Uniform random numbers, a baseline for the others."""
    generator = torch.Generator().manual_seed(seed)
    return {group.name: torch.rand(group.filters, generator=generator) for group in groups}


def _mean_over_layers(group: PruningGroup, layers: Sequence[str], score: Callable[[str], torch.Tensor]) -> torch.Tensor:
    """Scores of the layers' output channels, each divided by its mean, averaged over the layers: [C].

    Scores of several channels that belong to one filter are summed. A layer whose scores are all 0 adds nothing.
    """
    total = torch.zeros(group.filters)
    for member in group.members:
        if member.side == "out" and member.module in layers:
            own = score(member.module).cpu()[member.index].sum(1)  # [C]
            total += own / own.mean() if own.any() else own
    return total / len(layers)


def _weight(model: nn.Module, path: str) -> torch.Tensor:
    weight = model.get_submodule(path).weight
    assert isinstance(weight, torch.Tensor)
    return weight


def _rows(model: nn.Module, path: str, tensor: torch.Tensor) -> torch.Tensor:
    """A weight or its gradient with a row for every filter, [K, W]. Transposed convolutions have filters second."""
    return (tensor.transpose(0, 1) if isinstance(model.get_submodule(path), _ConvTransposeNd) else tensor).flatten(1)
