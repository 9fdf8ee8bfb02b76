"""A few steps of distillation, the same for every network: what a pruned network may learn before it is measured.

NetAdapt (Yang et al. 2018, arXiv:1804.03230) ranks its proposals after such a short-term fine-tuning. The images are
fixed and the teacher's answers to them are computed once, so what comes out is a function of the network that goes in:
to the bit on a processor with the same number of threads, else up to the order in which sums are taken.
"""

from __future__ import annotations

import torch
from torch import nn

from ..common.device import seeded, with_gradients
from ..data import DataSplits
from ..data.objective import Loss, check_loss
from .distillation import DistillationConfig, Teacher, loss_to
from .fit import one_cycle, optimizers_of, trainable, training_dtype
from .step import Step

BATCH = 128
RECIPE = DistillationConfig(lr=0.02, ema_decay=0.0)
"""Its learning rate, schedule, momentum, weight decay and loss are used."""


class Finetuner:
    """Calling it with a network gives a trained copy, in training mode and on the device.

    Pickles, if the user's loss does. Raises ValueError where labels without classes lack a loss.
    """

    @with_gradients
    def __init__(
        self,
        teacher: nn.Module,
        data: DataSplits,
        batches: int,
        *,
        loss: Loss | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        check_loss(loss, data)
        self.loss, self._classes, self._seed = loss, bool(data.classes), seed
        self._device, generator = torch.device(device), torch.Generator().manual_seed(seed)
        size = min(BATCH, len(data.train))
        passes = -(-batches * size // len(data.train))
        order = torch.cat([torch.randperm(len(data.train), generator=generator) for _ in range(passes)])
        # Smaller networks have the same maps, kernels and strides, so this holds for all of them.
        self._dtype = training_dtype(trainable(teacher, self._device), data.example_input.to(self._device))
        answer = Teacher(teacher, self._device, memory=0)
        self._batches = []
        """Normalised images [B, C, H, W], what the teacher says of them [B, K], labels [B] or [B, K]."""
        for rows in order[: batches * size].split(size):
            images = data.augmented(data.train.images[rows], generator).to(self._device)
            # In the precision that convolutions are given anyway.
            self._batches.append((images.to(self._dtype), answer(images), data.train.labels[rows].to(self._device)))

    @property
    def settings(self) -> tuple[object, ...]:
        """What the result depends on, besides network, teacher and data."""
        return len(self._batches), BATCH, self._seed, RECIPE

    @with_gradients
    def __call__(self, network: nn.Module) -> nn.Module:
        """Raises FloatingPointError where the loss or a weight is no longer finite."""
        example = self._batches[0][0][:2].float()
        tuned = trainable(network, self._device).train()
        answers = (taught for _, taught, _ in self._batches)
        taught_loss = loss_to(RECIPE, self.loss, classes=self._classes)

        def loss(logits: torch.Tensor, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return taught_loss(next(answers), logits, images, labels)

        with seeded(self._device, self._seed ^ 1):  # what dropout draws; not the draws of order and augmentation again
            step = Step(tuned, loss, optimizers_of(tuned, RECIPE, example), self._device, self._dtype, replay=False)
            for number, (images, _, labels) in enumerate(self._batches, 1):
                step.set_learning_rates(one_cycle(number / (len(self._batches) + 1), RECIPE.warmup))
                value = step(images.float().contiguous(memory_format=torch.channels_last), labels)
        learned = ((name, parameter) for name, parameter in tuned.named_parameters() if parameter.requires_grad)
        for name, tensor in (("the loss", value), *learned):  # the last step's effect shows in no loss
            if not torch.isfinite(tensor).all():
                raise FloatingPointError(
                    f"{name} is not finite after {len(self._batches)} batches at learning rate {RECIPE.lr}: this "
                    "network does not take it; set finetune_batches=0"
                )
        tuned.zero_grad(set_to_none=True)
        for parameter, original in zip(tuned.parameters(), network.parameters(), strict=True):
            parameter.requires_grad_(original.requires_grad)
        return tuned
