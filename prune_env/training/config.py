"""Settings of the training loop."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch

from ..common.command import check_writable
from ..common.device import Precision, check_device
from ..common.settings import BelowOne, NotNegative, Positive, Range, Seed, Settings, Whole


@dataclass(frozen=True)
class FitConfig(Settings):
    """How to train.

    Raises:
        ValueError: A field has a value that is not allowed; the message names the field.
    """

    epochs: Positive = 20
    """Passes over the training split; a fraction ends within a pass."""
    min_steps: Whole = 0
    """Minimum number of optimizer steps, also where `epochs` has fewer: epochs of a small data set are short."""
    batch_size: Annotated[int, Range(2)] = 128
    """Images per step, those of all processes together."""
    lr: Positive = 0.1
    """Peak learning rate of the one-cycle schedule (Smith & Topin 2019), which is linear up and down."""
    warmup: BelowOne = 0.2
    """Fraction of the steps in which the learning rate rises."""
    muon_lr: NotNegative = 0.0
    """Peak learning rate of Muon, for all convolutions before a BatchNorm except the first; 0 uses SGD for all."""
    momentum: BelowOne = 0.9
    """Momentum of SGD."""
    weight_decay: NotNegative = 5e-4
    """Weight decay of convolutions and linear layers; biases and BatchNorm have none."""
    label_smoothing: BelowOne = 0.1
    """Fraction of the target that is spread evenly over all classes."""
    ema_decay: BelowOne = 0.998
    """Decay per step of the averaged weights, which are the result; with 0 the result is the last weights."""
    cutout: Whole = 0
    """Side in pixels of a random grey square in every image (DeVries & Taylor 2017); 0 for none."""
    seed: Seed = 0
    """Seed of the order of images, of their augmentation, and of dropout."""
    # Not in the repr, from which the file names of cached networks are made, so that existing files stay valid.
    select_best: bool = field(default=False, repr=False)
    """Return the epoch with the highest accuracy on the reward split, the last of equal ones, instead of the last."""
    precision: Precision = field(default="auto", repr=False)
    """Precision that autocast computes in: bf16 (bfloat16), fp32 (float32), or auto: bfloat16 where the hardware is
    fast at it and the network can be trained in it, and float32 elsewhere."""


@dataclass(frozen=True)
class RunOptions(Settings):
    """Where and how training runs. These options do not change the result on one kind of device.

    Raises:
        ValueError: A field has a value that is not allowed, or the device is not available.
        OSError: The checkpoint cannot be written.
    """

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

    def __post_init__(self) -> None:
        super().__post_init__()
        check_device(self.device)
        if self.checkpoint is not None:
            check_writable("checkpoint", self.checkpoint)
