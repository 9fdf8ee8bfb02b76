"""Knowledge distillation: the smaller network learns from the unpruned one and from the labels.

Hinton, Vinyals & Dean 2015, arXiv:1503.02531: with teacher logits v and student logits z at temperature T,
loss = alpha T^2 KL(softmax(v / T) || softmax(z / T)) + (1 - alpha) CE(z, label); T^2 keeps the gradients' size.
A loss of the user's takes CE's place. Where labels are not classes, the teacher's term is alpha MSE(z, v).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from ..data import DataSplits
from ..device import channels_last, fast_dtype
from ..evaluation.metric import Metric, identity
from .fit import FitConfig, check_loss, cross_entropy, fit, state_digest
from .step import Loss

Teacher = Callable[[torch.Tensor], torch.Tensor]
"""Normalised images [B, C, H, W] -> logits float32 [B, K], which no gradient flows back from."""
TaughtLoss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(the teacher's logits [B, K], logits [B, K], normalised images [B, C, H, W], labels [B] or [B, K]) -> scalar"""


@dataclass(frozen=True)
class DistillationConfig(FitConfig):
    """How to distil; the training settings are FitConfig's with defaults for a network that is nearly there."""

    epochs: float = 4
    min_steps: int = 400
    lr: float = 0.02
    label_smoothing: float = 0.0
    ema_decay: float = 0.99
    temperature: float = 3.0
    """What logits are divided by before teacher and student are compared."""
    alpha: float = 0.9
    """Weight of the teacher; the labels have the rest."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0 or not 0 <= self.alpha <= 1:
            raise ValueError(
                f"distillation needs temperature > 0 and alpha in [0, 1]; got {self.temperature} and {self.alpha}"
            )


def distill(
    student: nn.Module,
    teacher: nn.Module,
    data: DataSplits,
    config: DistillationConfig | None = None,
    *,
    loss: Loss | None = None,
    metric: Metric | None = None,
    select_best: bool = True,
    checkpoint: Path | None = None,
    device: torch.device | str = "cpu",
    replay: bool | None = None,
    progress: bool = True,
    title: str = "distillation",
) -> nn.Module:
    """Trains a copy of `student` and returns it in eval mode, on the CPU; neither argument is changed.

    The optimizer is made for the copy's own, smaller parameters. With `select_best` the epoch that is best on the
    reward split wins.

    loss    what the labels ask, beside the teacher; default: cross-entropy. Labels without classes need one
    metric  what `select_best` goes by, in place of accuracy
    For the checkpoint, `replay`, and for what is raised, see `fit`.
    """
    config = config or DistillationConfig()
    check_loss(loss, data)
    asked = f" and by {identity(loss)}" if loss else ""
    training = FitConfig(**{field.name: getattr(config, field.name) for field in fields(FitConfig)})
    return fit(
        student,
        data,
        training,
        loss=distillation_loss(teacher, config, torch.device(device), loss, classes=bool(data.classes)),
        metric=metric,
        recipe=f"{config!r} taught by {state_digest(teacher)}{asked}",
        select_best=select_best,
        checkpoint=checkpoint,
        device=device,
        replay=loss is None if replay is None else replay,
        progress=progress,
        title=title,
    )


def distillation_loss(
    teacher: nn.Module,
    config: DistillationConfig,
    device: torch.device,
    label_loss: Loss | None = None,
    *,
    classes: bool = True,
) -> Loss:
    """The loss of the module's docstring.

    label_loss  default: cross-entropy
    classes     whether logits are those of classes, of which exactly one is right
    """
    answer, taught_loss = frozen(teacher, device), loss_to(config, label_loss, classes=classes)

    def loss(logits: torch.Tensor, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return taught_loss(answer(images), logits, images, labels)

    return loss


def frozen(teacher: nn.Module, device: torch.device) -> Teacher:
    """What a copy of the teacher says in eval mode, in the device's fast precision."""
    dtype = fast_dtype(device)
    teacher = channels_last(copy.deepcopy(teacher).to(device, dtype)).eval()
    teacher.requires_grad_(False)

    def answer(images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            logits: torch.Tensor = teacher(images.to(dtype))
        return logits.float()

    return answer


def loss_to(config: DistillationConfig, label_loss: Loss | None = None, *, classes: bool = True) -> TaughtLoss:
    """The same where the teacher's logits are known."""
    temperature, alpha = config.temperature, config.alpha
    hard = label_loss or cross_entropy(config.label_smoothing)

    def loss(taught: torch.Tensor, logits: torch.Tensor, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if classes:
            targets, student = F.log_softmax(taught / temperature, 1), F.log_softmax(logits / temperature, 1)
            soft = temperature**2 * F.kl_div(student, targets, reduction="batchmean", log_target=True)
        else:
            soft = F.mse_loss(logits, taught)
        return alpha * soft + (1 - alpha) * hard(logits, images, labels)

    return loss
