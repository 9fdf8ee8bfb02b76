"""Knowledge distillation: the pruned network learns from the original network and from the labels.

Hinton, Vinyals & Dean 2015, arXiv:1503.02531: with teacher logits v and student logits z at temperature T,
loss = alpha T^2 KL(softmax(v / T) || softmax(z / T)) + (1 - alpha) CE(z, label); T^2 keeps the size of the gradients.
Where every pixel has a class, KL is the mean over pixels. A user's loss replaces CE. Where labels are not classes, the
teacher's term is alpha MSE(z, v).

Letters: B images in a batch, C channels, H and W pixels, K outputs.
"""

from __future__ import annotations

import copy
import hashlib
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields, replace

import torch
from torch import nn
from torch.nn import functional as F

from ..common.device import DTYPES, Precision, failing_layer, fast_dtype
from ..common.expect import expect
from ..common.fingerprints import function_fingerprint, weights_fingerprint
from ..common.memory_format import channels_last, in_layout, memory_format
from ..common.settings import BelowOne, Fraction, Positive, Whole
from ..common.warn import warn
from ..data import DataSplits
from ..data.objective import Loss, Metric, check_loss, cross_entropy
from ..scoring.metric import eval_mode
from .config import FitConfig, RunOptions
from .fit import check_training, fit
from .trainable import in_float32


@dataclass(frozen=True)
class DistillationConfig(FitConfig):
    """How to distil: the settings of `FitConfig`, with defaults for a network that is nearly trained, and two more.

    Raises:
        ValueError: A field has a value that is not allowed; the message names the field.
    """

    epochs: Positive = 4
    min_steps: Whole = 400
    lr: Positive = 0.02
    label_smoothing: BelowOne = 0.0
    ema_decay: BelowOne = 0.99
    select_best: bool = field(default=True, repr=False)
    temperature: Positive = 3.0
    """Logits are divided by it before teacher and student are compared."""
    alpha: Fraction = 0.9
    """Weight of the teacher's term; the labels' term has the rest."""


class Teacher:
    """A copy of a network that answers images with logits, in eval mode, in fast precision and without gradients.

    Students that train with the same seed get the same batches. On a CPU, a teacher that they share remembers its
    answers; use one Teacher per seed. On a GPU it always computes, because a recorded step cannot look anything up.

    Args:
        network: The teacher; it is not changed.
        device: The device on which the students train.
        memory: Bytes of answers to remember. Batches return in the same order, so the first ones are kept.
        precision: auto, bf16 or fp32. With auto, a network that does not run in bfloat16 answers in float32, and a
            warning names the layer.
    """

    def __init__(
        self,
        network: nn.Module,
        device: torch.device | str = "cpu",
        *,
        memory: int = 64 << 20,
        precision: Precision = "auto",
    ) -> None:
        self.device = torch.empty(0, device=device).device  # 'cuda' becomes 'cuda:0', for instance
        self.fingerprint = weights_fingerprint(network)
        self._precision, self._layout = precision, torch.channels_last
        self._dtype = fast_dtype(self.device) if precision == "auto" else DTYPES[precision]
        self._network = in_float32(copy.deepcopy(network)).to(self.device).eval().requires_grad_(False)
        self._is_prepared = False
        self._free_memory = memory if self.device.type == "cpu" else 0
        self._answers: dict[bytes, torch.Tensor] = {}
        """Hash of a batch of images -> logits."""

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits float32 [B, K, ...] of normalised images [B, C, H, W], from memory if possible."""
        if not (self._free_memory or self._answers):
            return self.compute(images)
        key = _hash(images)
        if key in self._answers:
            return self._answers[key]
        logits = self.compute(images)
        if logits.nbytes <= self._free_memory:
            self._answers[key] = logits
            self._free_memory -= logits.nbytes
        return logits

    @torch.inference_mode(False)
    @torch.no_grad()
    def compute(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits float32 [B, K, ...] of normalised images [B, C, H, W], without the memory."""
        if not self._is_prepared:
            self._prepare(images[:2])
        exact = self._dtype == torch.float32  # also while a student trains in bfloat16
        with self._without_autocast() if exact else nullcontext():
            logits: torch.Tensor = self._network(in_layout(images.to(self._dtype), self._layout))
        return logits.float().clone()  # a view would keep the images, or a larger tensor, alive

    def check_outputs(self, network: nn.Module, images: torch.Tensor) -> None:
        """Check that the teacher has as many outputs as a network.

        Args:
            network: The network, on the CPU.
            images: A few normalised images [B, C, H, W] on the CPU.

        Raises:
            ValueError: It has not, or it does not run on these images.
        """
        try:
            found = tuple(self.compute(images.to(self.device)).shape)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"the teacher does not run on images of shape {tuple(images.shape[1:])}: {reason}; choose a teacher of "
                "the same images"
            ) from error
        with eval_mode(network), torch.no_grad():
            expected = tuple(network(images).shape)
        if found != expected:
            raise ValueError(
                f"the teacher's output for {len(images)} images is {found}, that of the network is {expected}; choose "
                "a teacher that was trained on the same classes"
            )

    def _without_autocast(self) -> AbstractContextManager[object]:
        return nullcontext() if self.device.type == "meta" else torch.autocast(self.device.type, enabled=False)

    def _prepare(self, images: torch.Tensor) -> None:
        """Convert the network to the precision and the memory format that it runs in."""
        with self._without_autocast():
            self._layout = memory_format(self._network, images.float())
        exact = channels_last(self._network, self._layout)
        if self._dtype != torch.float32:
            self._network = copy.deepcopy(exact).to(self._dtype)
            images = in_layout(images.float(), self._layout)
            try:
                self._network(images.to(self._dtype))
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # a forward pass may raise anything
                self._fall_back(exact, images, error)
        self._is_prepared = True

    def _fall_back(self, exact: nn.Module, images: torch.Tensor, error: Exception) -> None:
        """Answer in float32; an error that has nothing to do with the precision is raised there again."""
        with self._without_autocast():
            exact(images)
        where = failing_layer(self._network, images.to(self._dtype))
        reason = f"the teacher does not run in bfloat16{f', at {where}' if where else ''}: "
        reason += str(error).partition("\n")[0]
        if self._precision == "bf16":
            raise ValueError(f"precision='bf16', but {reason}; set precision='auto' or 'fp32'") from error
        warn(f"{reason}. It answers in float32, which takes longer")
        self._network, self._dtype = exact, torch.float32


@dataclass(frozen=True)
class CombinedLoss:
    """The loss of the module's docstring, for known teacher logits."""

    config: DistillationConfig
    """Temperature and weights of the terms."""
    label_loss: Loss | None = None
    """The labels' term; None for cross-entropy."""
    classes: bool = True
    """Whether the logits are those of classes, exactly one of which is right for an image or a pixel."""

    def __call__(
        self, teacher_logits: torch.Tensor, logits: torch.Tensor, images: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """Return the loss of a batch, a scalar.

        Args:
            teacher_logits: The teacher's logits [B, K, ...].
            logits: The student's logits [B, K, ...].
            images: Normalised images [B, C, H, W].
            labels: Labels [B, ...].
        """
        temperature, alpha = self.config.temperature, self.config.alpha
        if self.classes:
            targets, student = F.log_softmax(teacher_logits / temperature, 1), F.log_softmax(logits / temperature, 1)
            answers = logits.numel() // logits.shape[1]  # one for each image, or for each pixel
            soft = temperature**2 * F.kl_div(student, targets, reduction="sum", log_target=True) / answers
        else:
            soft = F.mse_loss(logits, teacher_logits)
        hard = self.label_loss or cross_entropy(self.config.label_smoothing)
        return alpha * soft + (1 - alpha) * hard(logits, images, labels)


@dataclass(frozen=True)
class DistillationLoss:
    """The loss of the module's docstring as a `Loss`: it runs the teacher on every batch."""

    teacher: Teacher
    """Answers the images of a batch with logits."""
    combined: CombinedLoss
    """Compares the student with these logits and with the labels."""

    @property
    def fingerprint(self) -> str:
        """Identifies teacher, settings and label loss, so that a checkpoint with others is refused."""
        label_loss = self.combined.label_loss
        labels = function_fingerprint(label_loss) if label_loss is not None else "cross-entropy"
        return f"{self.combined.config!r} {self.teacher.fingerprint} {labels}"

    def __call__(self, logits: torch.Tensor, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss of a batch, a scalar. See `CombinedLoss`."""
        return self.combined(self.teacher(images), logits, images, labels)


def distil(
    student: nn.Module,
    teacher: nn.Module | Teacher,
    data: DataSplits,
    config: DistillationConfig | None = None,
    *,
    loss: Loss | None = None,
    metric: Metric | None = None,
    run: RunOptions | None = None,
) -> nn.Module:
    """Train a copy of a student on the answers of a teacher and on the labels.

    Args:
        student: The network to train; it is not changed.
        teacher: A network, or a `Teacher` on the run's device that several students share, which is faster on a CPU.
        data: The data set.
        config: How to distil.
        loss: The labels' term instead of cross-entropy. Data without classes need one.
        metric: Selects the best epoch instead of top-1 accuracy or mean IoU, if `config.select_best` is set.
        run: Where and how to run; the result is resumed from `run.checkpoint` if that file exists.

    Returns:
        The trained copy, in eval mode on the CPU.

    Raises:
        TypeError: An argument is of another type.
        ValueError: The `Teacher` is on another device than the run, or an error that `fit` raises.
        FloatingPointError: The loss or a weight is no longer finite.

    Example:
        >>> small = problem.build(plan)
        >>> small = distil(small, problem.model, problem.data, DistillationConfig(epochs=2))
    """
    check_training(student, data, config, DistillationConfig)
    expect(teacher, (nn.Module, Teacher), "the teacher must be a network (nn.Module) or a Teacher")
    check_loss(loss, data)
    config, run = config or DistillationConfig(), run or RunOptions(title="distillation")
    if isinstance(teacher, nn.Module):
        teacher = Teacher(teacher, run.device, memory=0, precision=config.precision)
    elif teacher.device != torch.empty(0, device=run.device).device:
        raise ValueError(
            f"the teacher is on {teacher.device}, but the student trains on {run.device}; make a Teacher on that device"
        )
    return fit(
        student,
        data,
        FitConfig(**{setting.name: getattr(config, setting.name) for setting in fields(FitConfig)}),
        loss=DistillationLoss(teacher, CombinedLoss(config, loss, classes=bool(data.classes))),
        metric=metric,
        run=replace(run, replay=loss is None if run.replay is None else run.replay),
    )


def _hash(images: torch.Tensor) -> bytes:
    digest = hashlib.blake2b(f"{tuple(images.shape)} {images.dtype}".encode(), digest_size=16)
    digest.update(images.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.digest()
