"""How good a network is on a split: top-1 accuracy, or a function of the user's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..common.fingerprints import qualified_name
from ..data import DataSplits, Split
from ..data.objective import Metric, check_metric


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


def _to_float32(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return output.float()
