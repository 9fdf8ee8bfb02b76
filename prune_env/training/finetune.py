"""Finetuning: a few steps of distillation, the same for every pruned network, before its accuracy is measured.

NetAdapt (Yang et al. 2018, arXiv:1804.03230) ranks its proposals after such a short-term finetuning. The images are
fixed and the teacher's answers are computed once, so the result is a function of the network: bit-identical on a CPU
with the same number of threads, and otherwise equal up to the order of sums.

Letters: B images in a batch, C channels, H and W pixels, K outputs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from ..common.device import Precision, seeded, with_gradients
from ..common.memory_format import in_layout, memory_format
from ..data.objective import check_loss
from ..pruning.problem import PruningProblem
from .distillation import CombinedLoss, DistillationConfig, Teacher
from .optimizers import make_optimizers, one_cycle
from .step import Step
from .trainable import not_finite, restore_frozen, trainable_copy, training_dtype

BATCH_SIZE = 128
RECIPE = DistillationConfig(lr=0.02, ema_decay=0.0)
"""Gives the learning rate, schedule, momentum, weight decay and loss."""


class TaughtBatch(NamedTuple):
    """A batch of training images with the teacher's answer."""

    images: torch.Tensor
    """Augmented, normalised images [B, C, H, W] in the precision that convolutions compute in."""
    teacher_logits: torch.Tensor
    """float32 [B, K, ...]."""
    labels: torch.Tensor
    """[B, ...]."""


class Finetuner:
    """Finetunes networks, always on the same batches; call it with a network.

    It can be pickled if the user's loss can.

    Args:
        problem: The original network, which is the teacher, the data, and the loss.
        batches: Number of batches of up to 128 images.
        seed: Seed of the order of images, of their augmentation, and of dropout.
        device: Device to train on.
        precision: auto, bf16 or fp32.

    Raises:
        ValueError: Data without classes lack a loss, or `precision` is 'bf16' and the network cannot be trained in it.
    """

    @with_gradients
    def __init__(
        self,
        problem: PruningProblem,
        batches: int,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        precision: Precision = "auto",
    ) -> None:
        data = problem.data
        check_loss(problem.loss, data)
        self.loss, self._classes, self._seed = problem.loss, bool(data.classes), seed
        self._device, generator = torch.device(device), torch.Generator().manual_seed(seed)
        size = min(BATCH_SIZE, len(data.train))
        passes = -(-batches * size // len(data.train))
        order = torch.cat([torch.randperm(len(data.train), generator=generator) for _ in range(passes)])
        # Pruned networks have the same maps, kernels and strides, so this type is right for all of them.
        self._layout = memory_format(problem.model, data.example_input.to(self._device))
        example = in_layout(data.example_input.to(self._device), self._layout)
        original = trainable_copy(problem.model, self._device, self._layout)
        self._dtype = training_dtype(original, example, precision)
        teacher = Teacher(problem.model, self._device, memory=0, precision=precision)
        self.batches: list[TaughtBatch] = []
        for images, labels in data.train.read(order[: batches * size].split(size), seed):
            images, labels = data.training_batch(images, labels, generator)
            images, labels = in_layout(images.to(self._device), self._layout), labels.to(self._device)
            self.batches.append(TaughtBatch(images.to(self._dtype), teacher(images), labels))

    @property
    def settings(self) -> tuple[object, ...]:
        """Everything that the result depends on, besides network, teacher and data."""
        return len(self.batches), BATCH_SIZE, self._seed, RECIPE

    @with_gradients
    def __call__(self, network: nn.Module) -> nn.Module:
        """Return a finetuned copy of a network, in training mode and on the device.

        Raises:
            FloatingPointError: The loss or a weight is no longer finite.
        """
        example = self.batches[0].images[:2].float()
        tuned = trainable_copy(network, self._device, self._layout).train()
        never_finite = set(not_finite(tuned))
        answers = (batch.teacher_logits for batch in self.batches)
        combined = CombinedLoss(RECIPE, self.loss, classes=self._classes)

        def loss(logits: torch.Tensor, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return combined(next(answers), logits, images, labels)

        with seeded(self._device, self._seed ^ 1):  # another seed, so that dropout does not repeat used numbers
            optimizers = make_optimizers(tuned, RECIPE, example)
            step = Step(tuned, loss, optimizers, self._dtype, replay=False)
            for number, (images, _, labels) in enumerate(self.batches, 1):
                step.set_learning_rates(one_cycle(number / (len(self.batches) + 1), RECIPE.warmup))
                value = step(in_layout(images.float(), self._layout), labels)
        broken = [
            name for name in not_finite(tuned) if name not in never_finite
        ]  # the last step's effect shows in no loss
        if broken or not torch.isfinite(value).all():
            name = broken[0] if broken else "the loss"
            raise FloatingPointError(
                f"{name} is not finite after {len(self.batches)} batches at learning rate {RECIPE.lr}, so this "
                "network cannot be finetuned; set finetune_batches=0"
            )
        restore_frozen(tuned, network)
        return tuned
