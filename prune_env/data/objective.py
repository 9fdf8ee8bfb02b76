"""The loss that trains a network and the metric that scores it; users may replace both.

Letters: N images, B images in a batch, C channels, H and W pixels, K outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from ..common.outputs import described_output
from .masks import IGNORED
from .splits import DataSplits, Split

Metric = Callable[[nn.Module, Split], float]
"""Scores a network: (network, split) -> a finite number.

More is better, and the original network must score above 0, because rewards are ratios to its score. The network is in
eval mode, under `torch.inference_mode`, and returns float32. `split.images` are its normalised inputs [N, C, H, W], on
its device and in its precision; pass them to the network in batches of any size. `split.labels` [N, ...] are the
labels of the data, on the same device. `split.batches(size)` yields both in batches, which needs less memory where the
test images are streamed.
"""

Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Trains a network: (logits float32 [B, K, ...], normalised images [B, C, H, W], labels [B, ...]) -> scalar.

Masks are int64 [B, H, W], with 255 where a pixel does not count.

An object with settings can have an attribute `fingerprint`, a string that identifies them; see `function_fingerprint`.
"""


def cross_entropy(label_smoothing: float) -> Loss:
    """Return the cross-entropy loss of logits [B, K, ...] and class numbers [B, ...], of images or of pixels."""

    def loss(logits: torch.Tensor, _images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if labels.ndim == 1:
            return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        check_dense(logits, labels.shape[1:])
        counted = (labels != IGNORED).sum().clamp(min=1)
        total = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum", label_smoothing=label_smoothing)
        return total / counted

    return loss


def check_logits(logits: object, data: DataSplits) -> None:
    """Check that what a network returns are logits of every class, for every image or for every pixel.

    Raises:
        ValueError: They are not.
    """
    if not isinstance(logits, torch.Tensor):
        raise ValueError(
            f"the network must return one tensor of logits, it returned {described_output(logits)}; choose one with "
            "prune_env.one_output(network, KEY)"
        )
    if not data.classes:
        return
    if data.has_masks:
        check_dense(logits, data.train.select(torch.arange(1)).labels.shape[1:])
    if logits.ndim != (4 if data.has_masks else 2) or logits.shape[1] != len(data.classes):
        form = "[B, K, H, W]" if data.has_masks else "[B, K]"
        raise ValueError(
            f"the network's output is {tuple(logits.shape)}; data {data.name!r} has {len(data.classes)} classes, so it "
            f"must return {form} logits with K equal to that; if the data have some of its classes, load them with "
            "classes=[names of all K outputs, in their order] (--classes FILE on the command line)"
        )


def check_dense(logits: torch.Tensor, size: Sequence[int]) -> None:
    """Check that there are logits [B, K, H, W] for every pixel of masks.

    Args:
        logits: The logits.
        size: Height and width of the masks.

    Raises:
        ValueError: They have another shape.
    """
    if logits.ndim != 4 or tuple(logits.shape[2:]) != tuple(size):
        raise ValueError(
            f"the network's output is {tuple(logits.shape)}, the masks have {size[0]}x{size[1]} pixels; it must return "
            "logits [B, K, H, W] of that size: resize its output with torch.nn.functional.interpolate, or the masks"
        )


def check_metric(metric: Metric | None, data: DataSplits) -> None:
    """Check that there is a metric where the default, top-1 accuracy or mean IoU of masks, cannot be used.

    Raises:
        ValueError: The labels are floating-point targets and `metric` is None.
    """
    if metric is None and not data.classes:
        raise ValueError(
            f"the labels of data {data.name!r} are floating-point targets, which top-1 accuracy cannot count; give a "
            "metric(model, split) -> float"
        )


def check_loss(loss: Loss | None, data: DataSplits) -> None:
    """Check that there is a loss where cross-entropy, the default, cannot be used.

    Raises:
        ValueError: The labels are floating-point targets and `loss` is None.
    """
    if loss is None and not data.classes:
        raise ValueError(
            f"the labels of data {data.name!r} are floating-point targets, which cross-entropy does not take; give a "
            "loss(logits, images, labels) -> scalar, for instance one that returns "
            "torch.nn.functional.binary_cross_entropy_with_logits(logits, labels) or mse_loss(logits, labels)"
        )
