"""How long a network takes: medians of whole forward passes, several networks measured in turn.

A network is a module, which torch runs, or the path of an ONNX file, which onnxruntime runs on the CPU.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from torch import nn

from ..common import onnx_session as onnx_runtime
from ..common.device import channels_last

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
    runtime: Literal["torch", "onnxruntime"] = "torch"


def latency(
    model: nn.Module | Path,
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
    models: Mapping[str, nn.Module | Path],
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
    ONNX files (by Path, as `prune_env.export.to_onnx` writes them) are timed in float32, with images in NumPy's order.

    example_shape  (C, H, W) of one image; images are noise, the same at every call
    warmup         untimed runs of every network at first; one more precedes each turn, as the network before has
                   emptied the caches
    seconds        measuring goes on for at least this long per network, and for at least `min_runs` runs
    threads        of the CPU, for both runtimes; None for as many as torch uses now. The number is put back afterwards

    Raises ValueError that names the argument, FileNotFoundError for a missing ONNX file, ImportError without
    onnxruntime.
    """
    _check(models, example_shape, batch_size, warmup, min_runs, threads)
    device = torch.device(device)
    noise = torch.randn((batch_size, *example_shape), generator=torch.Generator().manual_seed(0))  # [B, C, H, W]
    times: dict[str, list[float]] = {name: [] for name in models}
    runs, threads_before = 0, torch.get_num_threads()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        threads = torch.get_num_threads()
        networks = {name: _ready(model, noise, device) for name, model in models.items()}
        with torch.inference_mode():
            for network, images in networks.values():
                for _ in range(warmup):
                    _timed(network, images)
            start = time.perf_counter()
            while runs < min_runs or time.perf_counter() - start < seconds * len(networks):
                for name, (network, images) in networks.items():
                    turn = [_timed(network, images) for _ in range(1 + TURN)]
                    times[name] += turn[1:]
                runs += TURN
    finally:
        torch.set_num_threads(threads_before)
    return {
        name: Latency(
            median_ms=1000 * median(times[name]),
            batch_size=batch_size,
            runs=runs,
            threads=threads,
            dtype=str(images.dtype).removeprefix("torch."),
            runtime="onnxruntime" if isinstance(models[name], Path) else "torch",
        )
        for name, (_, images) in networks.items()
    }


def _ready(
    model: nn.Module | Path, noise: torch.Tensor, device: torch.device
) -> tuple[Callable[[torch.Tensor], Any], torch.Tensor]:
    """What is timed, and its images, in the memory format that suits it."""
    if isinstance(model, Path):
        if device.type != "cpu":
            raise ValueError(f"device must be cpu to time the ONNX file {model}, got {device}")
        return onnx_runtime.runner(model), noise
    network = channels_last(copy.deepcopy(model).eval().to(device))
    return network, noise.to(device, _dtype(network), memory_format=torch.channels_last)


def _timed(model: Callable[[torch.Tensor], Any], images: torch.Tensor) -> float:
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
    models: Mapping[str, nn.Module | Path],
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
