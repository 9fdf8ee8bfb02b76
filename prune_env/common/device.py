"""Device helpers: fast precision, gradient mode, scoped seeding."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import torch
from torch import nn

Function = TypeVar("Function", bound=Callable[..., Any])
Precision = Literal["auto", "bf16", "fp32"]
"""auto: bfloat16 where the hardware is fast at it and the network runs in it, else float32."""
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


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


def processors() -> int:
    """Return the number of processors that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    return len(affinity(0)) if affinity else os.cpu_count() or 1
