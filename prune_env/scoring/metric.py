"""How good a network is on a split: top-1 accuracy, or a function of the user's."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


def correct(
    model: nn.Module,
    data: DataSplits,
    split: Split,
    device: torch.device | str = "cpu",
    batch_size: int = 500,
) -> int:
    """How many images of `split` the model on `device` gets right (top-1), in its own precision and eval mode."""
    dtype = next((parameter.dtype for parameter in model.parameters()), torch.float32)
    count = 0
    with evaluating(model), torch.inference_mode():
        for start in range(0, len(split), batch_size):
            images = data.normalise(split.images[start : start + batch_size].to(device)).to(dtype)
            labels = split.labels[start : start + batch_size].to(device)
            count += int((model(images).argmax(1) == labels).sum())
    return count


def score(
    model: nn.Module,
    data: DataSplits,
    split: Split,
    metric: Metric | None = None,
    device: torch.device | str = "cpu",
) -> float:
    """Top-1 accuracy of the model on `device`, or what `metric` says of it, in its own precision and eval mode.

    A metric is given the whole split as normalised inputs, so that has to fit into the device's memory.
    """
    check_metric(metric, data)
    if metric is None:
        return correct(model, data, split, device) / len(split)
    dtype = next((parameter.dtype for parameter in model.parameters()), torch.float32)
    inputs = Split(data.normalise(split.images.to(device)).to(dtype), split.labels.to(device))
    with evaluating(model):
        return measure(metric, model, inputs)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode within the block; afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


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


def identity(function: Callable[..., Any]) -> str:
    """What tells a function from others of its name, for the fingerprint of a run: settings and code.

    What it reads from elsewhere (globals, a callable object's attributes) is not looked at.
    """
    bound = ""
    while isinstance(function, partial):
        bound += f" {function.args!r} {sorted(function.keywords.items())!r}"
        function = function.func
    code = getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
    parts: list[Any] = []
    if code is not None:
        constants = [constant for constant in code.co_consts if isinstance(constant, (int, float, str, bytes))]
        parts = [code.co_code, code.co_names, constants]
    cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    parts += [value for value in cells if isinstance(value, (int, float, str, bytes))]
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()
    return f"{qualified_name(function)}{bound} {digest}"


def _to_float32(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return output.float()
