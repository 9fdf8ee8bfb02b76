"""The loss that trains a network and the metric that scores it; users may replace both.

Letters: N images, B images in a batch, C channels, H and W pixels, K outputs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from .splits import DataSplits, Split

Metric = Callable[[nn.Module, Split], float]
"""Scores a network: (network, split) -> a finite number.

More is better, and the original network must score above 0, because rewards are ratios to its score. The network is in
eval mode, under `torch.inference_mode`, and returns float32. `split.images` are its normalised inputs [N, C, H, W], on
its device and in its precision; pass them to the network in batches of any size. `split.labels` [N] or [N, K] are the
labels of the data, on the same device. `split.batches(size)` yields both in batches, which needs less memory where the
test images are streamed.
"""

Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Trains a network: (logits float32 [B, K], normalised images [B, C, H, W], labels [B] or [B, K]) -> scalar.

An object with settings can have an attribute `fingerprint`, a string that identifies them; see `function_fingerprint`.
"""


def check_metric(metric: Metric | None, data: DataSplits) -> None:
    """Check that there is a metric where top-1 accuracy, the default, cannot be used.

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
