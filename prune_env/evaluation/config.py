"""What the accuracy of a plan depends on, besides the plan and the problem."""

from __future__ import annotations

from dataclasses import dataclass

from ..common.device import Precision
from ..common.settings import Count, Whole
from ..pruning.problem import ProblemConfig


@dataclass(frozen=True)
class EvaluationConfig(ProblemConfig):
    """How an accuracy is measured.

    Raises:
        ValueError: A field has a value that is not allowed; the message names the field.
    """

    reward_images: Count = 1000
    """Images of the reward split on which an accuracy is measured, the same for every plan."""
    finetune_batches: Whole = 0
    """Batches of 128 training images by which a pruned network is distilled before its accuracy is measured. Every plan
    gets the same images and starts from the original weights, so a plan still has one accuracy. With 10 batches an
    evaluation takes about ten times as long. The batches stay in memory: up to 1.6 MB each for 32x32 colour images."""
    precision: Precision = "auto"
    """Precision that networks compute in: bf16 (bfloat16), fp32 (float32), or auto: bfloat16 where the hardware is
    fast at it and the network runs in it, and float32 elsewhere."""
