"""The optimizers of a training run, and their learning rate schedule."""

from __future__ import annotations

import torch
from torch import nn

from ..scoring.batchnorm import folding_pairs
from .config import FitConfig
from .muon import Muon


def make_optimizers(
    model: nn.Module, config: FitConfig, example_input: torch.Tensor
) -> dict[torch.optim.Optimizer, float]:
    """Make the optimizers of a network's parameters.

    Args:
        model: The network.
        config: The learning rates, momentum and weight decay.
        example_input: Normalised images [B, C, H, W] on the device of the network.

    Returns:
        Optimizer -> its peak learning rate.

    Raises:
        ValueError: `config.muon_lr` is set, but Muon has no convolution to train.
    """
    muon_weights: list[torch.Tensor] = []
    if config.muon_lr:
        before_batchnorm = [model.get_parameter(f"{conv}.weight") for conv, _ in folding_pairs(model, example_input)]
        muon_weights = [weight for weight in before_batchnorm[1:] if weight.requires_grad]
        if not muon_weights:
            raise ValueError(
                f"muon_lr={config.muon_lr} needs at least two trainable convolutions that a BatchNorm follows, which "
                "this network does not have; set muon_lr=0"
            )
    of_muon = {id(weight) for weight in muon_weights}
    rest = [parameter for parameter in model.parameters() if parameter.requires_grad and id(parameter) not in of_muon]
    groups = [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
    ]
    fused = True if example_input.device.type == "cuda" else None  # can read the learning rate from the GPU's memory
    sgd = torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=True, fused=fused)
    return {sgd: config.lr} | ({Muon(muon_weights, config.muon_lr): config.muon_lr} if muon_weights else {})


def one_cycle(progress: float, warmup: float) -> float:
    """Return the fraction of the peak learning rate at `progress` in (0, 1); it rises until `warmup`, then falls."""
    return progress / warmup if progress < warmup else (1 - progress) / (1 - warmup)
