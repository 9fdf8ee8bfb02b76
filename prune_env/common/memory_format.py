"""The memory format of networks and images: channels-last where a network can run in it."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import nn

from .device import exact_convolutions, seeded

Network = TypeVar("Network", bound=nn.Module)
LAYOUT_TOLERANCE = 1e-3
"""Largest difference between the outputs in two memory formats, as a fraction of the largest output."""


def channels_last(network: Network, layout: torch.memory_format = torch.channels_last) -> Network:
    """Convert the 2d weights of a network to channels-last or another memory format, in place, and return the network.

    `Module.to(memory_format=...)` fails for networks that also have weights of other dimensions.
    """
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = in_layout(parameter.data, layout)
    return network


def in_layout(images: torch.Tensor, layout: torch.memory_format) -> torch.Tensor:
    """Return a tensor [B, C, H, W] in a memory format, with the strides of that format also for dimensions of size 1.

    With a single channel, `contiguous` leaves a tensor as it is, but torch chooses the format of a convolution's output
    by the strides.
    """
    if layout == torch.channels_last:
        return in_layout(images.permute(0, 2, 3, 1), torch.contiguous_format).permute(0, 3, 1, 2)
    return images.contiguous().view(-1).view(images.shape)


def memory_format(network: nn.Module, images: torch.Tensor) -> torch.memory_format:
    """Return the memory format in which a network can run fast.

    It is channels-last, except for networks that need contiguous memory: `x.view(len(x), -1)` raises an error for maps
    of several pixels that are channels-last, and `x.as_strided(...)` returns other values.

    Args:
        network: The network, which is not changed.
        images: Normalised images [B, C, H, W] in the precision of the network, on the device to use.
    """
    if images.is_meta:
        return torch.channels_last
    outputs: list[Any] = []
    for layout in (torch.contiguous_format, torch.channels_last):
        copied = channels_last(copy.deepcopy(network).to(images.device).eval(), layout)
        try:
            with torch.no_grad(), exact_convolutions(images.device), seeded(images.device, 0):
                outputs.append(copied(in_layout(images.clone(), layout)))
        except Exception:  # a forward pass may raise anything
            outputs.append(None)
    expected, found = outputs
    if found is None and expected is not None:
        return torch.contiguous_format
    if isinstance(found, torch.Tensor) and isinstance(expected, torch.Tensor) and found.is_floating_point():
        gap = (found - expected).abs().nan_to_num().max()
        tolerance = LAYOUT_TOLERANCE if found.dtype in (torch.float32, torch.float64) else 0.1
        if found.shape != expected.shape or gap > tolerance * expected.abs().nan_to_num().max():
            return torch.contiguous_format
    return torch.channels_last
