"""Score a network on a split: top-1 accuracy of images, mean IoU of masks, or a user's metric.

Letters: B images in a batch, C channels, H and W pixels, K classes.
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
from ..data import IGNORED, DataSplits, Split, TensorSplit
from ..data.objective import Metric, check_dense, check_metric
from ..data.splits import InputSplit

Network = Callable[[torch.Tensor], torch.Tensor]
"""From inputs [B, C, H, W] to logits."""
BATCH_SIZE = 500
"""Images per forward pass of `accuracy`."""
PIXELS, DENSE_PIXELS = 2**22, 2**20
"""Pixels per forward pass of a classifier, and of a network that keeps the resolution of its images."""


def accuracy(
    network: nn.Module,
    data: DataSplits,
    split: Split,
    metric: Metric | None = None,
    device: torch.device | str = "cpu",
) -> float:
    """Return the score of a network on a split: top-1 accuracy, mean IoU if the labels are masks, or that of a metric.

    The network runs in eval mode and in its own precision. Its modes and its device are restored afterwards, also
    after an error.

    Args:
        network: The network.
        data: The data set, which normalises the images.
        split: The images and labels to score on.
        metric: Scores the network instead. It gets the whole split as normalised inputs, which must fit into the
            device's memory. Streamed images are read as it uses them.
        device: Device of the forward pass.

    Returns:
        The fraction of correctly classified images, the mean IoU of `mean_iou`, or the metric's score.

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
                if isinstance(split, TensorSplit):
                    return apply_metric(metric, network, TensorSplit(inputs(split.images), split.labels.to(device)))
                return apply_metric(metric, network, InputSplit(split, inputs, device))
            return apply_metric(default_metric, network, InputSplit(split, inputs, device))
    finally:
        network.to(home)


def onnx_accuracy(file: Path, data: DataSplits, split: Split) -> float:
    """Return the top-1 accuracy or mean IoU of an ONNX file, which onnxruntime runs on the CPU.

    Args:
        file: The ONNX file.
        data: The data set, which normalises the images.
        split: The images, and class numbers of images or pixels, to score on.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: onnxruntime is not installed.
        ValueError: onnxruntime cannot load the file, or the labels are no classes.
    """
    check_metric(None, data)
    return default_metric(open_session(file), InputSplit(split, data.normalise, "cpu"))


def default_metric(network: Network, split: Split, batch_size: int = BATCH_SIZE) -> float:
    """Return the mean IoU of a network if labels are masks, and its top-1 accuracy otherwise.

    Args:
        network: The network.
        split: Its inputs, and class numbers of images or pixels.
        batch_size: Images per forward pass, at most.
    """
    if split.has_masks:
        return mean_iou(network, split, batch_size)
    return count_correct(network, split.batches(images_at_once(split, batch_size))) / len(split)


def mean_iou(network: Network, split: Split, batch_size: int = BATCH_SIZE) -> float:
    """Return the intersection over union of predicted and true pixels of a class, averaged over classes.

    All images count together. Pixels that are 255 in the mask do not count, nor do classes of which the masks have no
    pixel.

    Args:
        network: The network, which returns logits [B, K, H, W].
        split: Its inputs, and masks [N, H, W].
        batch_size: Images per forward pass, at most; fewer if they are large.

    Raises:
        ValueError: The logits have another shape than the masks, or no pixel counts.
    """
    confusion: torch.Tensor | int = 0  # [K, K], pixels by true and predicted class
    for images, masks in split.batches(images_at_once(split, batch_size)):
        logits = network(images)
        check_dense(logits, masks.shape[1:])
        counted, classes = masks != IGNORED, logits.shape[1]
        true, predicted = masks[counted].long(), logits.argmax(1)[counted]
        pairs = (true * classes + predicted).bincount(minlength=classes**2)
        if len(pairs) > classes**2:
            raise ValueError(
                f"a mask has class {int(true.max())}, but the network has logits of {classes} classes only"
            )
        confusion = confusion + pairs.view(classes, classes)
    assert isinstance(confusion, torch.Tensor)
    common, true, predicted = confusion.diag(), confusion.sum(1), confusion.sum(0)
    occurs = true > 0
    if not bool(occurs.any()):
        raise ValueError(f"all pixels of the masks are {IGNORED}, so none counts for the mean IoU")
    return float((common / (true + predicted - common))[occurs].mean())


@torch.inference_mode()
def count_correct(network: Network, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> int:
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


def images_at_once(split: Split, limit: int) -> int:
    """Return how many images fit into one forward pass: fewer than `limit` if they are large."""
    pixels = DENSE_PIXELS if split.has_masks else PIXELS
    return max(1, min(limit, pixels // (split.shape[1] * split.shape[2])))


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
