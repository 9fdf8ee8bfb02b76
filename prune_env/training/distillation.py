"""Knowledge distillation: the smaller network learns from the unpruned one and from the labels.

Hinton, Vinyals & Dean 2015, arXiv:1503.02531: with teacher logits v and student logits z at temperature T,
loss = alpha T^2 KL(softmax(v / T) || softmax(z / T)) + (1 - alpha) CE(z, label); T^2 keeps the gradients' size.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from ..data import DataSplits
from ..device import fast_dtype
from .fit import FitConfig, Loss, fit, state_digest


@dataclass(frozen=True)
class DistillationConfig(FitConfig):
    """How to distil; the training settings are FitConfig's with defaults for a network that is nearly there."""

    epochs: float = 4
    min_steps: int = 400
    lr: float = 0.02
    label_smoothing: float = 0.0
    ema_decay: float = 0.99
    temperature: float = 3.0
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
    select_best: bool = True,
    checkpoint: Path | None = None,
    device: torch.device | str = "cpu",
    progress: bool = True,
    title: str = "distillation",
) -> nn.Module:
    """Trains a copy of `student` and returns it in eval mode, on the CPU; neither argument is changed.

    The optimizer is made for the copy's own, smaller parameters. With `select_best` the epoch that is best on the
    reward split wins. For the checkpoint, and for what is raised, see `fit`.
    """
    config = config or DistillationConfig()
    loss = distillation_loss(teacher, config, torch.device(device))
    training = FitConfig(**{field.name: getattr(config, field.name) for field in fields(FitConfig)})
    return fit(
        student,
        data,
        training,
        loss=loss,
        identity=f"{config!r} taught by {state_digest(teacher)}",
        select_best=select_best,
        checkpoint=checkpoint,
        device=device,
        progress=progress,
        title=title,
    )


def distillation_loss(teacher: nn.Module, config: DistillationConfig, device: torch.device) -> Loss:
    """The loss of the module's docstring; the teacher is a frozen copy in eval mode."""
    teacher = copy.deepcopy(teacher).to(device, fast_dtype(device)).to(memory_format=torch.channels_last).eval()
    teacher.requires_grad_(False)
    dtype = fast_dtype(device)
    temperature, alpha = config.temperature, config.alpha

    def loss(logits: torch.Tensor, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            targets = F.log_softmax(teacher(images.to(dtype)).float() / temperature, 1)  # [B, K]
        student = logits.float()
        soft = F.kl_div(F.log_softmax(student / temperature, 1), targets, reduction="batchmean", log_target=True)
        hard = F.cross_entropy(student, labels, label_smoothing=config.label_smoothing)
        return alpha * temperature**2 * soft + (1 - alpha) * hard

    return loss
