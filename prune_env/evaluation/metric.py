"""How good a network is on a split: top-1 accuracy, or a function of the user's."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from ..data import DataSplits, Split

Metric = Callable[[nn.Module, Split], float]
"""(network, split) -> a finite number, more is better, above 0 for the unpruned network: rewards are ratios to it.

The network is in eval mode, under torch.inference_mode, and returns float32. `split.images` are its normalised inputs
[N, C, H, W], on its device and in its precision, to be passed to it in batches of any size; `split.labels` [N] or
[N, K] are those of the data, on the same device.
"""


def measure(metric: Metric, network: nn.Module, split: Split) -> float:
    """What the metric says, checked. Raises ValueError that names the metric and its value."""
    handle = network.register_forward_hook(_to_float32)
    try:
        with torch.inference_mode():
            value: Any = metric(network, split)
    finally:
        handle.remove()
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"metric {qualified_name(metric)} must return one number, it returned {value!r}") from error
    if not math.isfinite(number):
        raise ValueError(f"metric {qualified_name(metric)} must return a finite number, it returned {number}")
    return number


def check_metric(metric: Metric | None, data: DataSplits) -> None:
    """Raises ValueError where there is nothing to measure by: top-1 accuracy, the default, needs classes."""
    if metric is None and not data.classes:
        raise ValueError(
            f"the labels of data {data.name!r} are floating-point targets, which top-1 accuracy cannot count; give a "
            "metric(model, split) -> float"
        )


def qualified_name(function: Callable[..., Any]) -> str:
    """Module and name of a function, or of a callable object's class."""
    while isinstance(function, partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def _to_float32(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return output.float()
