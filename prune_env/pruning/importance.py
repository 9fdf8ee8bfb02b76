"""Which filters matter: one score for each filter of a group, computed once on the unpruned network.

A group may span several layers (a residual stream). Each layer's scores are divided by their mean, so that no layer
drowns the others, and the group's score is the mean over its layers: 1 is an average filter. In a group of one layer
this is the layer's own score up to a factor. Letters: C filters, K weights of a filter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvTransposeNd

from .copies import twin
from .groups import PruningGroup
from .surgery import channels

Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]
"""Normalised images [B, C, H, W] and their labels [B]."""


def scores(
    method: str, model: nn.Module, groups: Sequence[PruningGroup], *, batches: Batches = (), seed: int = 0
) -> dict[str, torch.Tensor]:
    """Agent id -> importance of its filters, float32 [C] on the CPU; more is more important. The model is not changed.

    method   a name in METHODS
    batches  for `taylor`
    seed     for `random`
    Raises ValueError for an unknown method, a group that the method cannot score, or scores that are not finite.
    """
    if method not in METHODS:
        raise ValueError(f"importance {method!r} is unknown; choose one of {', '.join(METHODS)}")
    result = METHODS[method](model, groups, batches, seed)
    for group in groups:
        if not result[group.name].isfinite().all():
            raise ValueError(
                f"importance {method!r} of group {group.name} ({', '.join(group.layers)}) is not finite; "
                "check the network's weights"
            )
    return result


def ranking(scores: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Agent id -> filter indices, the most important first, int64 [C]; equals in the order of their index."""
    return {agent: score.argsort(descending=True, stable=True) for agent, score in scores.items()}


def l1_norm(weight: torch.Tensor) -> torch.Tensor:
    """[C, K] -> [C]: sum of absolute weights (Li et al., ICLR 2017, section 3.1)."""
    return weight.abs().sum(1)


def l2_norm(weight: torch.Tensor) -> torch.Tensor:
    """[C, K] -> [C]: Euclidean norm (He et al., IJCAI 2018, equation 2)."""
    return weight.square().sum(1).sqrt()


def geometric_median(weight: torch.Tensor) -> torch.Tensor:
    """[C, K] -> [C]: sum of distances to all filters of the layer (FPGM, He et al., CVPR 2019, equation 4).

    A filter near the geometric median can be replaced by the others, so the smallest sums go first.
    """
    weight = weight.double()  # cdist multiplies matrices: fast, and exact enough only in double precision
    return torch.cdist(weight, weight).sum(1).float()


def taylor_expansion(weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """[C, K], [C, K] -> [C]: squared first-order change of the loss without each weight, summed over a filter's
    weights (Molchanov et al., CVPR 2019, equations 6 and 7)."""
    return (weight * gradient).square().sum(1)


def _by_filter(measure: Callable[[torch.Tensor], torch.Tensor]) -> Method:
    """A method that looks at one layer's filters at a time."""

    def method(
        model: nn.Module, groups: Sequence[PruningGroup], batches: Batches, seed: int
    ) -> dict[str, torch.Tensor]:
        def layer(path: str) -> torch.Tensor:
            return measure(_by_output(model, path, _weight(model, path).detach()).float())

        return {group.name: _mean_over_layers(group, group.layers, layer) for group in groups}

    return method


def _bn_scale(model: nn.Module, groups: Sequence[PruningGroup], batches: Batches, seed: int) -> dict[str, torch.Tensor]:
    """Absolute BatchNorm scale (network slimming, Liu et al., ICCV 2017)."""

    def scale(path: str) -> torch.Tensor:
        weight = model.get_submodule(path).weight
        assert isinstance(weight, torch.Tensor)
        return weight.detach().float().abs()

    result = {}
    for group in groups:
        members = {member.module: model.get_submodule(member.module) for member in group.members}
        norms = [path for path, module in members.items() if isinstance(module, _NormBase) and module.affine]
        if not norms:
            raise ValueError(
                f"importance 'bn_scale' needs a BatchNorm with a scale behind every convolution; group "
                f"{group.name} ({', '.join(group.layers)}) has none: choose another importance"
            )
        result[group.name] = _mean_over_layers(group, norms, scale)
    return result


@torch.inference_mode(False)  # a caller's mode, no_grad too, ends here: gradients are on
def _taylor(model: nn.Module, groups: Sequence[PruningGroup], batches: Batches, seed: int) -> dict[str, torch.Tensor]:
    """First-order Taylor expansion of the cross-entropy in eval mode, averaged over batches."""
    copy = twin(model).eval().requires_grad_(False)
    weights = {path: _weight(copy, path).requires_grad_() for group in groups for path in group.layers}
    total = {
        path: torch.zeros(channels(copy.get_submodule(path), "out"), device=weight.device)
        for path, weight in weights.items()
    }
    count = 0
    for images, labels in batches:
        device = next(iter(weights.values())).device
        loss = F.cross_entropy(copy(images.to(device)), labels.to(device))
        gradients = torch.autograd.grad(loss, list(weights.values()))
        for (path, weight), gradient in zip(weights.items(), gradients, strict=True):
            total[path] += taylor_expansion(*(_by_output(copy, path, tensor.detach()) for tensor in (weight, gradient)))
        count += 1
    if count == 0:
        raise ValueError("importance 'taylor' needs batches of (normalised images, labels); none were given")
    return {group.name: _mean_over_layers(group, group.layers, lambda path: total[path] / count) for group in groups}


def _random(model: nn.Module, groups: Sequence[PruningGroup], batches: Batches, seed: int) -> dict[str, torch.Tensor]:
    """Uniform numbers: what any other method should beat."""
    generator = torch.Generator().manual_seed(seed)
    return {group.name: torch.rand(group.filters, generator=generator) for group in groups}


def _mean_over_layers(group: PruningGroup, layers: Sequence[str], score: Callable[[str], torch.Tensor]) -> torch.Tensor:
    """Scores of the layers' output channels, each divided by its mean, averaged over the layers: [C].

    A filter that has several channels in a layer sums them; a layer whose scores are all 0 says nothing.
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


def _by_output(model: nn.Module, path: str, tensor: torch.Tensor) -> torch.Tensor:
    """A weight or its gradient with a row for every filter: [C, K]. Transposed convolutions have them second."""
    return (tensor.transpose(0, 1) if isinstance(model.get_submodule(path), _ConvTransposeNd) else tensor).flatten(1)


Method = Callable[[nn.Module, Sequence[PruningGroup], Batches, int], dict[str, torch.Tensor]]

METHODS: dict[str, Method] = {
    "l1": _by_filter(l1_norm),
    "l2": _by_filter(l2_norm),
    "bn_scale": _bn_scale,
    "fpgm": _by_filter(geometric_median),
    "taylor": _taylor,
    "random": _random,
}
"""Name -> (model, groups, batches, seed) -> scores."""
