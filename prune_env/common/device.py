"""What the processor is fast at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)
Function = TypeVar("Function", bound=Callable[..., Any])


def fast_dtype(device: torch.device | str = "cpu") -> torch.dtype:
    """bfloat16 where the hardware multiplies it natively (AVX512_BF16, AMX, CUDA since Ampere), else float32.

    On other processors bfloat16 is emulated and slower than float32.
    """
    device = torch.device(device)
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    elif device.type == "cpu":
        # Private in torch 2.6, and the only way to ask; a missing name counts as 'no'.
        asks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        native = any(getattr(torch.cpu, ask, bool)() for ask in asks)
    else:
        native = False
    return torch.bfloat16 if native else torch.float32


def with_gradients(function: Function) -> Function:
    """Decorates what trains: gradients are on inside, also where the caller turned them off.

    Whoever only steps an environment does that, TorchRL's collectors for one. Leaving inference mode turns on what
    `no_grad` turned off, too.
    """
    decorated: Function = torch.inference_mode(False)(function)
    return decorated


@contextmanager
def exact_convolutions(device: torch.device | str) -> Iterator[None]:
    """Float32 convolutions are float32 inside: cuDNN otherwise rounds to TF32, a thousand times as coarse."""
    if torch.device(device).type != "cuda":
        yield
        return
    # Since torch 2.9 by a setting of its own, which must not be mixed with the one before.
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
    """What draws from torch's global random state inside, such as dropout, follows from `seed`; the state is restored.

    Of the processor and of `device`.
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
    """The network, its 2d weights laid out with channels last, in place. `Module.to` fails where others are beside."""
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return network


def check_device(device: torch.device | str) -> None:
    """Raises ValueError for a device that torch does not know or that is not there."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises either, by backend
        raise ValueError(f"device {str(device)!r} cannot be used: {error}") from error
