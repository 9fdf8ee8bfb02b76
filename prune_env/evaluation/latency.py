"""How long a network takes: medians of whole forward passes, several networks measured in turn."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

import torch
from torch import nn

TURN = 4
"""Timed runs of one network before the next has its turn."""


@dataclass(frozen=True)
class Latency:
    """Median wall-clock time of one forward pass, and how it was measured."""

    median_ms: float
    batch_size: int
    runs: int
    threads: int
    """of the CPU, inside an operation"""
    dtype: str
    """of weights and inputs, by torch's name: float32, bfloat16"""


def latency(
    model: nn.Module,
    example_shape: tuple[int, int, int],
    batch_size: int,
    *,
    warmup: int = 5,
    seconds: float = 1.0,
    min_runs: int = 20,
    threads: int | None = None,
    device: torch.device | str = "cpu",
) -> Latency:
    """The latency of one network. `interleaved` explains the arguments; use it to compare networks."""
    settings = {"warmup": warmup, "seconds": seconds, "min_runs": min_runs, "threads": threads, "device": device}
    return interleaved({"model": model}, example_shape, batch_size, **settings)["model"]  # type: ignore[arg-type]


def interleaved(
    models: Mapping[str, nn.Module],
    example_shape: tuple[int, int, int],
    batch_size: int,
    *,
    warmup: int = 5,
    seconds: float = 1.0,
    min_runs: int = 20,
    threads: int | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, Latency]:
    """Latencies of several networks, measured round-robin so that a drift of the machine hits all alike.

    Copies are timed, in eval mode, channels_last and the precision of their weights; the models stay as they are.

    example_shape  (C, H, W) of one image; images are noise, the same at every call
    warmup         untimed runs of every network at first; one more precedes each turn, as the network before has
                   emptied the caches
    seconds        measuring goes on for at least this long per network, and for at least `min_runs` runs
    threads        of the CPU; None for as many as torch uses now. The number is put back afterwards

    Raises ValueError that names the argument.
    """
    _check(models, example_shape, batch_size, warmup, min_runs, threads)
    device = torch.device(device)
    copies = {
        name: copy.deepcopy(model).eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        for name, model in models.items()
    }
    dtypes = {name: _dtype(model) for name, model in copies.items()}
    noise = torch.randn((batch_size, *example_shape), generator=torch.Generator().manual_seed(0))  # [B, C, H, W]
    images = {
        dtype: noise.to(device, dtype, memory_format=torch.channels_last) for dtype in dict.fromkeys(dtypes.values())
    }
    times: dict[str, list[float]] = {name: [] for name in copies}
    runs, threads_before = 0, torch.get_num_threads()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        threads = torch.get_num_threads()
        with torch.inference_mode():
            for name, model in copies.items():
                for _ in range(warmup):
                    _timed(model, images[dtypes[name]])
            start = time.perf_counter()
            while runs < min_runs or time.perf_counter() - start < seconds * len(copies):
                for name, model in copies.items():
                    turn = [_timed(model, images[dtypes[name]]) for _ in range(1 + TURN)]
                    times[name] += turn[1:]
                runs += TURN
    finally:
        torch.set_num_threads(threads_before)
    return {
        name: Latency(1000 * median(times[name]), batch_size, runs, threads, str(dtypes[name]).removeprefix("torch."))
        for name in copies
    }


def _timed(model: nn.Module, images: torch.Tensor) -> float:
    """Seconds of one forward pass, to the end of the device's work."""
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    start = time.perf_counter()
    model(images)
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    return time.perf_counter() - start


def _dtype(model: nn.Module) -> torch.dtype:
    return next((weights.dtype for weights in model.parameters() if weights.is_floating_point()), torch.float32)


def _check(
    models: Mapping[str, nn.Module],
    example_shape: tuple[int, ...],
    batch_size: int,
    warmup: int,
    min_runs: int,
    threads: int | None,
) -> None:
    if not models:
        raise ValueError("models is empty; give at least one network to measure, by name")
    if len(example_shape) != 3 or min(example_shape) < 1:
        raise ValueError(f"example_shape must be (C, H, W) of one image, without the batch; got {example_shape}")
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("warmup", warmup, 0),
        ("min_runs", min_runs, 1),
        ("threads", 1 if threads is None else threads, 1),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
