"""A few steps of distillation, the same for every network: what a pruned network may learn before it is measured.

NetAdapt (Yang et al. 2018, arXiv:1804.03230) ranks its proposals after such a short-term fine-tuning. The images are
fixed and the teacher's answers to them are computed once, so what comes out is a function of the network that goes in.
"""

from __future__ import annotations

import torch
from torch import nn

from ..data import DataSplits
from ..device import fast_dtype, seeded
from .distillation import DistillationConfig, loss_to
from .fit import check_loss, one_cycle, optimizers_of, trainable, training_dtype
from .step import Loss, Step

BATCH = 128
RECIPE = DistillationConfig(lr=0.02, ema_decay=0.0)
"""Its learning rate, schedule, momentum, weight decay and loss are used. README has what else was tried."""


class BriefDistillation:
    """Calling it with a network gives a trained copy, in training mode and on the device.

    Pickles, if the user's loss does. Raises ValueError where labels without classes lack a loss.
    """

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
        device, generator = torch.device(device), torch.Generator().manual_seed(seed)
        size, dtype = min(BATCH, len(data.train)), fast_dtype(device)
        passes = -(-batches * size // len(data.train))
        order = torch.cat([torch.randperm(len(data.train), generator=generator) for _ in range(passes)])
        rows = order[: batches * size].view(batches, size)
        # In the precision that convolutions are given anyway.
        images = [data.augmented(data.train.images[chosen], generator).to(device, dtype) for chosen in rows]
        with torch.inference_mode():
            network = trainable(teacher, device).to(dtype).eval()
            taught = [network(batch).float() for batch in images]
        # Letters: S batches. Whole tensors, as each of several views would be pickled with all of the memory.
        self._images = torch.stack(images)  # normalised [S, B, C, H, W]
        self._taught = torch.stack(taught)  # [S, B, K]
        self._labels = data.train.labels[rows].to(device)  # [S, B] or [S, B, K]

    @property
    def settings(self) -> tuple[object, ...]:
        """What the result depends on, besides network, teacher and data."""
        return len(self._images), BATCH, self._seed, RECIPE

    def __call__(self, network: nn.Module) -> nn.Module:
        """Raises FloatingPointError where the loss is no longer finite."""
        device, example = self._images.device, self._images[0, :2].float()
        network = trainable(network, device).train()
        answers, taught_loss = iter(self._taught), loss_to(RECIPE, self.loss, classes=self._classes)

        def loss(logits: torch.Tensor, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return taught_loss(next(answers), logits, images, labels)

        optimizers, dtype = optimizers_of(network, RECIPE, example), training_dtype(network, example)
        step = Step(network, loss, optimizers, device, dtype, replay=False)
        with seeded(device, self._seed):
            for number, (images, labels) in enumerate(zip(self._images, self._labels, strict=True), 1):
                images = images.float().contiguous(memory_format=torch.channels_last)
                step.set_learning_rates(one_cycle(number / (len(self._images) + 1), RECIPE.warmup))
                value = step(images, labels)
        if not torch.isfinite(value):
            raise FloatingPointError(
                f"the loss is {value.item()} after {len(self._images)} batches at learning rate {RECIPE.lr}: this "
                "network does not take it; set finetune_batches=0"
            )
        network.zero_grad(set_to_none=True)
        return network
