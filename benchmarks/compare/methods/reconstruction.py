"""Least squares after cutting: fit layers that lost inputs so that they reproduce their original outputs.

The method is that of He, Zhang & Sun 2017 (arXiv:1707.06168, section 3.1), which AMC uses. Inputs and outputs are those
of the original network on the calibration images, at a few positions of each image. Sums over them are computed once;
each plan only solves a linear system for the inputs that it keeps. Letters: N rows, D inputs of a layer (channels x
kernel), O outputs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from prune_env import PruningProblem
from prune_env.pruning import Plan, kept_indices, removed_channels

POSITIONS = 10
"""Sampled positions of a feature map, the same for all images of a batch; the value is that of AMC."""
BATCH = 50
RIDGE = 1e-4
"""Fraction of the diagonal's mean that is added to it, because inputs that are never active make it singular."""


class Reconstruction:
    """Inputs and outputs of the layers of a problem's original network.

    Grouped convolutions and convolutions without zero padding keep their weights after cutting.

    Args:
        problem: The problem.
        seed: Seed of the sampled positions.
        device: Device of the linear systems.
    """

    def __init__(self, problem: PruningProblem, seed: int, device: torch.device) -> None:
        self._problem = problem
        readers = {member.module for group in problem.groups for member in group.members if member.side == "in"}
        layers = {name: layer for name in sorted(readers) if _fits(layer := problem.model.get_submodule(name))}
        self._sums: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        rng = np.random.default_rng(seed)
        hooks = [layer.register_forward_hook(self._hook(name, rng)) for name, layer in layers.items()]
        try:
            with torch.inference_mode():
                for images in problem.calibration_crops().split(BATCH):
                    problem.model(images)
        finally:
            for hook in hooks:
                hook.remove()
        # On the device, because the systems of wide layers are large.
        self._sums = {name: (x.to(device), y.to(device)) for name, (x, y) in self._sums.items()}

    def network(self, plan: Plan) -> nn.Module:
        """Return the network of a plan with reconstructed weights."""
        problem = self._problem
        network = problem.build(plan)
        removed = removed_channels(problem.groups, kept_indices(problem.groups, problem.ranking, plan))
        for name, (inputs, products) in self._sums.items():
            if (name, "in") not in removed:
                continue
            original, layer = problem.model.get_submodule(name), network.get_submodule(name)
            kernel = original.weight[0, 0].numel()
            rows = _stays(removed.get((name, "in")), original.weight.shape[1], inputs.device).repeat_interleave(kernel)
            columns = _stays(removed.get((name, "out")), original.weight.shape[0], inputs.device)
            square = inputs[rows][:, rows]
            square.diagonal().add_(RIDGE * square.diagonal().mean() + 1e-12)
            fitted = torch.linalg.solve(square, products[rows][:, columns])
            with torch.no_grad():
                layer.weight.copy_(fitted.T.reshape(layer.weight.shape))
        return network

    def _hook(self, name: str, rng: np.random.Generator) -> Callable[..., None]:
        def add(layer: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            x, y = _rows(layer, args[0], output, rng)
            sums = x.T @ x, x.T @ y  # [D, D], [D, O]
            known = self._sums.get(name)
            self._sums[name] = sums if known is None else (known[0] + sums[0], known[1] + sums[1])

        return add


def _rows(
    layer: nn.Module, features: torch.Tensor, output: torch.Tensor, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return sampled inputs [N, D] of a layer and its outputs without the bias [N, O]."""
    bias = 0 if layer.bias is None else layer.bias
    if isinstance(layer, nn.Linear):
        return features.flatten(0, -2), (output - bias).flatten(0, -2)
    vertical, horizontal = layer.padding
    padded = F.pad(features, (horizontal, horizontal, vertical, vertical))
    x, y = [], []
    height, width = output.shape[2:]
    for position in rng.integers(height * width, size=POSITIONS):
        row, column = divmod(int(position), width)
        top, left = row * layer.stride[0], column * layer.stride[1]
        window = padded[:, :, top : top + layer.kernel_size[0], left : left + layer.kernel_size[1]]
        x.append(window.flatten(1))
        y.append(output[:, :, row, column] - bias)
    return torch.cat(x), torch.cat(y)


def _fits(layer: nn.Module) -> bool:
    """Return whether the weights of a layer can be fitted."""
    if isinstance(layer, nn.Linear):
        return True
    plain = isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.dilation == (1, 1)
    return plain and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def _stays(gone: torch.Tensor | None, size: int, device: torch.device) -> torch.Tensor:
    """Return a mask of the channels that stay."""
    stays = torch.ones(size, dtype=torch.bool)
    if gone is not None:
        stays[gone] = False
    return stays.to(device)
