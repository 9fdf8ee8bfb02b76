"""The copy of a network that is trained, the precision it trains in, and a fingerprint of how it learns."""

from __future__ import annotations

import copy
import hashlib

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from ..common.device import channels_last, fast_dtype, seeded
from ..scoring.metric import eval_mode
from .step import first_tensor


def trainable_copy(model: nn.Module, device: torch.device) -> nn.Module:
    """Return a copy of a network on a device; a network that is frozen completely is unfrozen in the copy."""
    model = channels_last(copy.deepcopy(model).to(device))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        model.requires_grad_(True)
    return model


def training_dtype(model: nn.Module, example_input: torch.Tensor) -> torch.dtype:
    """Return the type that autocast should compute in when this network trains.

    It is the fast precision of the device, except where bfloat16 gradients are wrong: oneDNN's bfloat16 gradient of a
    convolution with a stride contains uninitialised memory where maps have a single pixel and the kernel is wider
    (torch 2.14). It is noise in every run, and sometimes not a number.

    Args:
        model: The network.
        example_input: Normalised images [B, C, H, W] on the device of the network.
    """
    dtype = fast_dtype(example_input.device)
    if dtype == torch.bfloat16 and _strides_over_single_pixels(model, example_input):
        return torch.float32
    return dtype


def learning_fingerprint(model: nn.Module, example_input: torch.Tensor) -> str:
    """Return a hash of how a network learns, besides its weights: the frozen layers, and its output in training mode.

    Dropout, for example, changes that output. The output is rounded to three digits, because the order of sums depends
    on the number of threads.

    Args:
        model: The network.
        example_input: Normalised images [B, C, H, W] on the CPU.
    """
    network = trainable_copy(model, torch.device("cpu")).train()
    with torch.no_grad(), seeded("cpu", 0):
        output = first_tensor(network(example_input)).flatten()
    rounded = (1000 * output / output.abs().max().clamp(min=1e-12)).round().tolist()
    flags = [parameter.requires_grad for parameter in network.parameters()]
    return hashlib.blake2b(f"{flags} {rounded}".encode(), digest_size=16).hexdigest()


def _strides_over_single_pixels(model: nn.Module, example_input: torch.Tensor) -> bool:
    """Return whether a convolution with a stride and a kernel wider than 1 gets maps of a single pixel."""
    found = []

    def check(module: _ConvNd, inputs: tuple[torch.Tensor, ...]) -> None:
        if inputs and inputs[0].shape[2:].numel() == 1 and max(module.kernel_size) > 1 and max(module.stride) > 1:
            found.append(module)

    handles = [m.register_forward_pre_hook(check) for m in model.modules() if isinstance(m, _ConvNd)]
    try:
        with eval_mode(model), torch.inference_mode():
            model(example_input)
    finally:
        for handle in handles:
            handle.remove()
    return bool(found)
