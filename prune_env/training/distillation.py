"""Knowledge distillation: the smaller network learns from the unpruned one and from the labels.

Hinton, Vinyals & Dean 2015, arXiv:1503.02531: with teacher logits v and student logits z at temperature T,
loss = alpha T^2 KL(softmax(v / T) || softmax(z / T)) + (1 - alpha) CE(z, label); T^2 keeps the gradients' size.
A loss of the user's takes CE's place. Where labels are not classes, the teacher's term is alpha MSE(z, v).
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from ..common.device import channels_last, fast_dtype
from ..common.expect import expect
from ..common.fingerprints import function_fingerprint, weights_fingerprint
from ..data import DataSplits
from ..data.objective import Loss, Metric, check_loss
from .fit import FitConfig, check_training, cross_entropy, fit

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


class Teacher:
    """What a copy of a network says in eval mode, in the device's fast precision; no gradient flows back from it.

    Students that train with the same seed are shown the same batches. On a CPU a teacher that they share looks up what
    it was asked before; on a GPU, where a recorded step cannot look anything up, it always computes.

    memory  bytes of answers to keep; those of the first batches stay, as batches return in the order they came in.
            Another seed is for another teacher
    """

    def __init__(self, network: nn.Module, device: torch.device | str = "cpu", *, memory: int = 64 << 20) -> None:
        self.device = torch.empty(0, device=device).device  # says which one where the caller says 'cuda'
        self.fingerprint = weights_fingerprint(network)
        self._dtype = fast_dtype(self.device)
        self._network = channels_last(copy.deepcopy(network).to(self.device, self._dtype)).eval()
        self._network.requires_grad_(False)
        self._room = memory if self.device.type == "cpu" else 0
        self._said: dict[bytes, torch.Tensor] = {}
        """Logits by fingerprint of the images."""

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Normalised images [B, C, H, W] -> logits float32 [B, K]."""
        if not (self._room or self._said):
            return self._compute(images)
        key = _fingerprint(images)
        if key in self._said:
            return self._said[key]
        logits = self._compute(images)
        if logits.nbytes <= self._room:
            self._said[key], self._room = logits, self._room - logits.nbytes
        return logits

    @torch.inference_mode(False)
    @torch.no_grad()
    def _compute(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self._network(images.to(self._dtype))
        return logits.float().clone()  # what is kept must not be a view of the images, or of something larger


def distill(
    student: nn.Module,
    teacher: nn.Module | Teacher,
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
    """Trains a copy of `student` and returns it in eval mode, on the CPU; no network is changed.

    The optimizer is made for the copy's own, smaller parameters. With `select_best` the epoch that is best on the
    reward split wins.

    teacher a network, or a Teacher on `device` that several students share, which is faster on a CPU
    loss    what the labels ask, beside the teacher; default: cross-entropy. Labels without classes need one
    metric  what `select_best` goes by, in place of accuracy
    Raises ValueError for a Teacher on another device. For the checkpoint, `replay` and what else is raised, see `fit`.
    """
    check_training(student, data, config, DistillationConfig)
    expect(teacher, (nn.Module, Teacher), "the teacher must be a network (nn.Module) or a Teacher")
    config, device = config or DistillationConfig(), torch.device(device)
    check_loss(loss, data)
    if isinstance(teacher, nn.Module):
        teacher = Teacher(teacher, device, memory=0)
    elif teacher.device != torch.empty(0, device=device).device:
        raise ValueError(
            f"the teacher is on {teacher.device}, the student is to learn on {device}; make another Teacher"
        )
    asked = f" and by {function_fingerprint(loss)}" if loss else ""
    training = FitConfig(**{field.name: getattr(config, field.name) for field in fields(FitConfig)})
    return fit(
        student,
        data,
        training,
        loss=distillation_loss(teacher, config, loss, classes=bool(data.classes)),
        metric=metric,
        recipe=f"{config!r} taught by {teacher.fingerprint}{asked}",
        select_best=select_best,
        checkpoint=checkpoint,
        device=device,
        replay=loss is None if replay is None else replay,
        progress=progress,
        title=title,
    )


def distillation_loss(
    teacher: Teacher,
    config: DistillationConfig,
    label_loss: Loss | None = None,
    *,
    classes: bool = True,
) -> Loss:
    """The loss of the module's docstring.

    label_loss  default: cross-entropy
    classes     whether logits are those of classes, of which exactly one is right
    """
    taught_loss = loss_to(config, label_loss, classes=classes)

    def loss(logits: torch.Tensor, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return taught_loss(teacher(images), logits, images, labels)

    return loss


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


def _fingerprint(images: torch.Tensor) -> bytes:
    digest = hashlib.blake2b(f"{tuple(images.shape)} {images.dtype}".encode(), digest_size=16)
    digest.update(images.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.digest()
