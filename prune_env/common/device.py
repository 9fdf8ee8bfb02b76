"""Device helpers: fast precision, memory format, gradient mode, scoped seeding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)
Function = TypeVar("Function", bound=Callable[..., Any])


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


def channels_last(network: Network) -> Network:
    """Convert the 2d weights of a network to the channels-last memory format, in place, and return the network.

    `Module.to(memory_format=...)` fails for networks that also have weights of other dimensions.
    """
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return network


def check_device(device: torch.device | str) -> None:
    """Check that a device exists and can be used.

    Raises:
        ValueError: torch does not have this device, or this machine does not.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises either, depending on the backend
        raise ValueError(f"device {str(device)!r} cannot be used: {error}") from error
