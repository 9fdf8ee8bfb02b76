"""Settings of the training loop."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..common.device import Precision, check_precision


@dataclass(frozen=True)
class FitConfig:
    """How to train.

    Raises:
        ValueError: A field has a value that is not allowed; the message names the field.
    """

    epochs: float = 20
    """Passes over the training split; a fraction ends within a pass."""
    min_steps: int = 0
    """Minimum number of optimizer steps, also where `epochs` has fewer: epochs of a small data set are short."""
    batch_size: int = 128
    """Images per step."""
    lr: float = 0.1
    """Peak learning rate of the one-cycle schedule (Smith & Topin 2019), which is linear up and down."""
    warmup: float = 0.2
    """Fraction of the steps in which the learning rate rises."""
    muon_lr: float = 0.0
    """Peak learning rate of Muon, for all convolutions before a BatchNorm except the first; 0 uses SGD for all."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """Weight decay of convolutions and linear layers; biases and BatchNorm have none."""
    label_smoothing: float = 0.1
    """Fraction of the target that is spread evenly over all classes."""
    ema_decay: float = 0.998
    """Decay per step of the averaged weights, which are the result; with 0 the result is the last weights."""
    cutout: int = 0
    """Side in pixels of a random grey square in every image (DeVries & Taylor 2017); 0 for none."""
    seed: int = 0
    """Seed of the order of images, of their augmentation, and of dropout."""
    # Not in the repr, from which the file names of cached networks are made, so that existing files stay valid.
    select_best: bool = field(default=False, repr=False)
    """Return the epoch with the highest accuracy on the reward split, the last of equal ones, instead of the last."""
    precision: Precision = field(default="auto", repr=False)
    """Precision that autocast computes in: bf16 (bfloat16), fp32 (float32), or auto: bfloat16 where the hardware is
    fast at it and the network can be trained in it, and float32 elsewhere."""

    def __post_init__(self) -> None:
        check_precision(self.precision)
        if self.epochs <= 0 or self.batch_size < 2 or self.lr <= 0 or self.muon_lr < 0:
            raise ValueError(
                f"training needs epochs > 0, batch_size >= 2, lr > 0 and muon_lr >= 0; got epochs={self.epochs}, "
                f"batch_size={self.batch_size}, lr={self.lr}, muon_lr={self.muon_lr}"
            )
        if not 0 <= self.warmup < 1 or not 0 <= self.ema_decay < 1:
            raise ValueError(
                f"warmup and ema_decay must be in [0, 1), got warmup={self.warmup}, ema_decay={self.ema_decay}"
            )


@dataclass(frozen=True)
class RunOptions:
    """Where and how training runs. These options do not change the result on one kind of device."""

    device: torch.device | str = "cpu"
    """Device to train on, such as cpu, cuda or cuda:1."""
    checkpoint: Path | None = None
    """File that is written after every epoch. An existing checkpoint of the same run is resumed."""
    progress: bool = True
    """Whether to show a progress bar."""
    title: str = "training"
    """Title of the progress bar."""
    replay: bool | None = None
    """On a GPU, record the training step and replay it, which is up to three times as fast for small networks. Not for
    a network or a loss whose Python code does something else from step to step. None: only with the default loss."""
