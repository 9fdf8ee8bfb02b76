"""Device helpers: fast precision, memory format, gradient mode, scoped seeding."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)
Function = TypeVar("Function", bound=Callable[..., Any])
Precision = Literal["auto", "bf16", "fp32"]
"""auto: bfloat16 where the hardware is fast at it and the network runs in it, else float32."""
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
LAYOUT_TOLERANCE = 1e-3
"""Largest difference between the outputs in two memory formats, as a fraction of the largest output."""


def fast_dtype(device: torch.device | str = "cpu") -> torch.dtype:
    """Return bfloat16 where the hardware multiplies it natively, and float32 elsewhere.

    AVX512_BF16, AMX, and CUDA since Ampere are native. Other processors emulate bfloat16, slower than float32.
    """
    device = torch.device(device)
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    elif device.type == "cpu":
        # torch 2.6 has no public function for this; a missing name counts as 'no'.
        checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        native = any(getattr(torch.cpu, check, bool)() for check in checks)
    else:
        native = False
    return torch.bfloat16 if native else torch.float32


def with_gradients(function: Function) -> Function:
    """Decorate a function that trains: enable gradients inside it, even where the caller disabled them.

    Callers that only step an environment often disable gradients, for example TorchRL's collectors. Leaving inference
    mode also undoes `torch.no_grad`.
    """
    decorated: Function = torch.inference_mode(False)(function)
    return decorated


@contextmanager
def exact_convolutions(device: torch.device | str) -> Iterator[None]:
    """Compute float32 convolutions in float32 inside the block.

    By default cuDNN rounds them to TF32, which is about a thousand times less precise.
    """
    if torch.device(device).type != "cuda":
        yield
        return
    # torch 2.9 has a separate setting for convolutions, which must not be mixed with the older one.
    convolutions: Any = getattr(torch.backends.cudnn, "conv", None)
    recent = hasattr(convolutions, "fp32_precision")
    holder: Any = convolutions if recent else torch.backends.cudnn
    name, exact = ("fp32_precision", "ieee") if recent else ("allow_tf32", False)
    before = getattr(holder, name)
    setattr(holder, name, exact)
    try:
        yield
    finally:
        setattr(holder, name, before)


@contextmanager
def seeded(device: torch.device | str, seed: int) -> Iterator[None]:
    """Seed torch's global random state of the CPU and of `device` inside the block, and restore it afterwards.

    Dropout, for example, draws from this state.
    """
    device = torch.device(device)
    generators = [torch.random.default_generator]
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        generators.append(torch.cuda.default_generators[index])
    before = [generator.get_state() for generator in generators]
    for generator in generators:
        generator.manual_seed(seed)
    try:
        yield
    finally:
        for generator, state in zip(generators, before, strict=True):
            generator.set_state(state)


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


def failing_layer(network: nn.Module, images: torch.Tensor) -> str:
    """Return the path and type of the innermost module whose forward pass raises an error; empty if none does."""
    entered: list[str] = []

    def enter(name: str) -> Callable[..., None]:
        return lambda *_: entered.append(name)

    handles = []
    for name, module in network.named_modules():
        label = f"{name or 'the network'} ({type(module).__name__})"
        handles.append(module.register_forward_pre_hook(enter(label)))
        handles.append(module.register_forward_hook(lambda *_: entered.pop() and None))
    try:
        with torch.no_grad(), seeded(images.device, 0):
            network(images)
        return ""
    except Exception:  # a forward pass may raise anything
        return entered[-1] if entered else ""
    finally:
        for handle in handles:
            handle.remove()


def check_device(device: torch.device | str) -> None:
    """Check that a device exists and can be used.

    Raises:
        ValueError: torch does not have this device, or this machine does not.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises either, depending on the backend
        raise ValueError(f"device {str(device)!r} cannot be used: {error}") from error
