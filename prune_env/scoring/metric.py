"""Score a network on a split: top-1 accuracy, or a user's metric.

Letters: B images in a batch, C channels, H and W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..common.fingerprints import qualified_name
from ..common.onnx_session import open_session
from ..data import DataSplits, Split, TensorSplit
from ..data.objective import Metric, check_metric
from ..data.splits import InputSplit

BATCH_SIZE = 500
"""Images per forward pass of `accuracy`."""


def accuracy(
    network: nn.Module,
    data: DataSplits,
    split: Split,
    metric: Metric | None = None,
    device: torch.device | str = "cpu",
) -> float:
    """Return the top-1 accuracy of a network on a split, or its score by a metric.

    The network runs in eval mode and in its own precision. Its modes and its device are restored afterwards, also
    after an error.

    Args:
        network: The network.
        data: The data set, which normalises the images.
        split: The images and labels to score on.
        metric: Scores the network instead of top-1 accuracy. It gets the whole split as normalised inputs, which must
            fit into the device's memory. Streamed images are read as it uses them.
        device: Device of the forward pass.

    Returns:
        The fraction of correctly classified images, or the metric's score.

    Raises:
        ValueError: The labels are no classes and there is no metric, or the metric does not return a finite number.
    """
    check_metric(metric, data)
    first = next((p for p in network.parameters() if p.is_floating_point()), torch.empty(0))
    dtype, home = first.dtype, first.device

    def inputs(images: torch.Tensor) -> torch.Tensor:
        return data.normalise(images.to(device)).to(dtype)

    try:
        with eval_mode(network.to(device)):
            if metric is not None:
                labels = split.labels.to(device)
                if isinstance(split, TensorSplit):
                    return apply_metric(metric, network, TensorSplit(inputs(split.images), labels))
                return apply_metric(metric, network, InputSplit(split, inputs, labels))
            batches = ((inputs(images), labels.to(device)) for images, labels in split.batches(BATCH_SIZE))
            return count_correct(network, batches) / len(split)
    finally:
        network.to(home)


def onnx_accuracy(file: Path, data: DataSplits, split: Split) -> float:
    """Return the top-1 accuracy of an ONNX file, which onnxruntime runs on the CPU.

    Args:
        file: The ONNX file.
        data: The data set, which normalises the images.
        split: The images and class labels to score on.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: onnxruntime is not installed.
        ValueError: onnxruntime cannot load the file, or the labels are no classes.
    """
    check_metric(None, data)
    batches = ((data.normalise(images), labels) for images, labels in split.batches(BATCH_SIZE))
    return count_correct(open_session(file), batches) / len(split)


@torch.inference_mode()
def count_correct(
    network: Callable[[torch.Tensor], torch.Tensor], batches: Iterable[tuple[torch.Tensor, torch.Tensor]]
) -> int:
    """Return the number of images that a network classifies correctly (top-1).

    Args:
        network: The network, which should be in eval mode.
        batches: Normalised inputs [B, C, H, W] in the network's precision and class numbers [B], on its device.
    """
    return sum(int((network(images).argmax(1) == labels).sum()) for images, labels in batches)


def apply_metric(metric: Metric, network: nn.Module, split: Split) -> float:
    """Return a metric's score of a network, after a check that it is a finite number.

    Args:
        metric: The metric.
        network: The network, which should be in eval mode; it returns float32 while the metric runs.
        split: Normalised inputs in the network's precision, and labels, on its device.

    Raises:
        ValueError: The metric does not return a finite number; the message names the metric and its value.
    """
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


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Set eval mode within the block, and restore the mode of every module afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _to_float32(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return output.float()
