"""Measure latencies: medians of whole forward passes, with several networks measured in turn.

A network is a module, which torch runs, or the path of an ONNX file, which onnxruntime runs on the CPU.

Letters: B images in a batch, C channels, H and W pixels.
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

from ..common.device import check_device
from ..common.memory_format import channels_last, in_layout, memory_format
from ..common.onnx_session import open_session
from ..common.settings import Count, NotNegative, Positive, Settings, Whole, checked

RUNS_PER_TURN = 4
"""Timed runs of one network before the turn of the next."""


@dataclass(frozen=True)
class Latency:
    """Wall-clock time of one forward pass, and how it was measured."""

    median_ms: float
    """Milliseconds."""
    fastest_ms: float
    """Milliseconds of the fastest run, which other work on the machine disturbs least."""
    batch_size: int
    """Images per forward pass."""
    runs: int
    """Number of timed forward passes."""
    threads: int
    """CPU threads per operation."""
    dtype: str
    """Type of weights and inputs: float32, bfloat16, ..."""
    runtime: Literal["torch", "onnxruntime"] = "torch"
    """The library that ran the network."""


@dataclass(frozen=True)
class TimingConfig(Settings):
    """How latencies are measured.

    Raises:
        ValueError: A field has a value that is not allowed; the message names the field.
    """

    warmup: Whole = 5
    """Untimed runs of every network at the start. One more run precedes each turn, because the previous network has
    replaced the contents of the caches."""
    seconds: NotNegative = 1.0
    """Minimum time of measuring per network."""
    min_runs: Count = 20
    """Minimum number of timed runs per network."""
    max_seconds: Positive = 20.0
    """Time of one network, with its untimed runs, after which measuring ends early. For networks whose forward passes
    take seconds; a quarter of it at most is for `warmup`, and at least one run of every network is timed."""
    threads: Count | None = None
    """CPU threads per operation, for both runtimes; None for as many as torch uses now. The number is restored
    afterwards."""
    device: torch.device | str = "cpu"
    """Device that the networks run on; ONNX files only run on the CPU."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_device(self.device)


def latency(
    model: nn.Module | Path,
    example_shape: tuple[int, int, int],
    batch_size: int,
    config: TimingConfig | None = None,
) -> Latency:
    """Measure the latency of one network. To compare networks use `latencies`, which also explains the arguments."""
    return latencies({"model": model}, example_shape, batch_size, config)["model"]


def latencies(
    models: Mapping[str, nn.Module | Path],
    example_shape: tuple[int, int, int],
    batch_size: int,
    config: TimingConfig | None = None,
) -> dict[str, Latency]:
    """Measure the latencies of several networks in turn, so that a drift of the machine affects all alike.

    Modules are copied and timed in eval mode, in channels-last memory format (networks that need contiguous memory
    in that) and in the precision of their weights. ONNX files are timed in float32, with contiguous images.

    Args:
        models: Name -> module, or path of an ONNX file that `prune_env.export.to_onnx` wrote.
        example_shape: Shape of one image, (C, H, W). The images are noise, the same in every call.
        batch_size: Images per forward pass.
        config: How to measure.

    Returns:
        Name -> latency.

    Raises:
        ValueError: An argument is wrong; the message names it.
        FileNotFoundError: An ONNX file is missing.
        ImportError: There is an ONNX file, and onnxruntime is not installed.
    """
    _check(models, example_shape, batch_size)
    config = config or TimingConfig()
    noise = torch.randn((batch_size, *example_shape), generator=torch.Generator().manual_seed(0))  # [B, C, H, W]
    threads_before = torch.get_num_threads()
    try:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        threads = torch.get_num_threads()
        networks = {name: _prepared(model, noise, torch.device(config.device)) for name, model in models.items()}
        times = _measure(networks, config)
    finally:
        torch.set_num_threads(threads_before)
    return {
        name: Latency(
            median_ms=1000 * median(times[name]),
            fastest_ms=1000 * min(times[name]),
            batch_size=batch_size,
            runs=len(times[name]),
            threads=threads,
            dtype=str(images.dtype).removeprefix("torch."),
            runtime="onnxruntime" if isinstance(models[name], Path) else "torch",
        )
        for name, (_, images) in networks.items()
    }


def time_forward(network: Callable[[torch.Tensor], Any], images: torch.Tensor) -> float:
    """Return the seconds of one forward pass on images [B, C, H, W], including all work on their device."""
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    start = time.perf_counter()
    network(images)
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    return time.perf_counter() - start


def _measure(
    networks: Mapping[str, tuple[Callable[[torch.Tensor], Any], torch.Tensor]], config: TimingConfig
) -> dict[str, list[float]]:
    """Time networks on their images in turn; return the seconds of every timed run."""
    times: dict[str, list[float]] = {name: [] for name in networks}
    spent = dict.fromkeys(networks, 0.0)

    def run(name: str) -> float:
        seconds = time_forward(*networks[name])
        spent[name] += seconds
        return seconds

    with torch.inference_mode():
        for name in networks:
            for _ in range(config.warmup):
                run(name)
                if spent[name] >= config.max_seconds / 4:
                    break
        runs, start = 0, time.perf_counter()
        while runs < config.min_runs or time.perf_counter() - start < config.seconds * len(networks):
            for name in networks:
                run(name)
                for _ in range(RUNS_PER_TURN):
                    times[name].append(run(name))
                    if spent[name] >= config.max_seconds:
                        break
            runs += RUNS_PER_TURN
            if max(spent.values()) >= config.max_seconds:
                break
    return times


def _prepared(
    model: nn.Module | Path, noise: torch.Tensor, device: torch.device
) -> tuple[Callable[[torch.Tensor], Any], torch.Tensor]:
    """Return the function to time, and its images in the right precision and memory format."""
    if isinstance(model, Path):
        if device.type != "cpu":
            raise ValueError(f"device must be cpu to time the ONNX file {model}, got {device}")
        return open_session(model), noise
    images = noise.to(device, _dtype(model))
    layout = memory_format(model, images[:2])
    return channels_last(copy.deepcopy(model).eval().to(device), layout), in_layout(images, layout)


def _dtype(model: nn.Module) -> torch.dtype:
    return next((weights.dtype for weights in model.parameters() if weights.is_floating_point()), torch.float32)


def _check(models: Mapping[str, nn.Module | Path], example_shape: tuple[int, ...], batch_size: int) -> None:
    if not models:
        raise ValueError("models is empty; give at least one network")
    checked("example_shape (C, H, W)", example_shape, tuple[Count, Count, Count])
    checked("batch_size", batch_size, Count)
