"""One step of training: forward, loss, backward, optimizers.

On a GPU the kernels of a small network end before the next ones are launched. The step is therefore recorded once as a
CUDA graph and replayed: the same kernels on the same memory, launched together.

Letters: B images in a batch, C channels, H and W pixels, K outputs.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import nullcontext

import torch
from torch import nn

from ..common.cuda_graphs import capture, forbid_synchronisation, side_stream
from ..data.objective import Loss
from .processes import Processes, SynchronisedBatchNorm

WARMUP_STEPS = 3
"""Steps before the recording; after them, optimizers have their buffers and libraries their workspaces."""
WORTH_RECORDING = 30
"""Record only if at least this many steps remain."""

logger = logging.getLogger(__name__)


class Step:
    """Takes one training step per call.

    Args:
        model: The network to train.
        loss: The loss.
        optimizers: Optimizer -> its peak learning rate.
        dtype: The type that autocast computes in.
        replay: Whether to record and replay the step, if the device is a GPU. A step that waits for the GPU, or that
            several processes take together, cannot be recorded and is taken normally.
        processes: Those that take the step together, each with its part of the batch.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        optimizers: Mapping[torch.optim.Optimizer, float],
        dtype: torch.dtype,
        replay: bool,
        processes: Processes | None = None,
    ) -> None:
        self._processes = processes or Processes()
        self._model, self._loss, self._optimizers = model, loss, optimizers
        self._device, self.dtype = next(model.parameters()).device, dtype
        self._replay = replay and self._device.type == "cuda" and self._processes.count == 1
        self._steps = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._images = self._labels = self._value = torch.empty(0)
        if self._replay:
            for group in (group for optimizer in optimizers for group in optimizer.param_groups):
                group["lr"] = torch.zeros((), device=self._device)  # a recorded step reads it from the GPU's memory

    def set_learning_rates(self, share: float) -> None:
        """Set every optimizer's learning rate to this fraction of its peak."""
        for optimizer, peak in self._optimizers.items():
            for group in optimizer.param_groups:
                if self._replay:
                    group["lr"].fill_(peak * share)
                else:
                    group["lr"] = peak * share

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Take one step.

        Args:
            images: Normalised images [B, C, H, W] of this process.
            labels: Labels [B, ...].

        Returns:
            The loss before the step, the mean over all processes: a scalar that the next call may overwrite.
        """
        if not self._replay:
            return self._take(images, labels)
        self._steps += 1
        if self._steps < WARMUP_STEPS:
            with side_stream(self._device):
                return self._take(images, labels)
        if self._steps == WARMUP_STEPS:
            return self._take_and_test(images, labels)
        if self._graph is None:
            self._record(images, labels)
            assert self._graph is not None
        self._images.copy_(images)
        self._labels.copy_(labels)
        self._graph.replay()
        return self._value

    def _take(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        together = self._processes.count > 1
        with torch.autocast(self._device.type, self.dtype, enabled=self.dtype != torch.float32):
            with SynchronisedBatchNorm(self._processes) if together else nullcontext():
                logits = first_tensor(self._model(images)).float()
            value = self._loss(logits, images, labels)
        self._model.zero_grad(set_to_none=True)
        value.backward()
        self._processes.average_gradients(self._model.parameters())
        for optimizer in self._optimizers:
            optimizer.step()
        return self._processes.average(value.detach())

    def _take_and_test(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Take one step; if it waits for the GPU, do not record later ones."""
        try:
            with side_stream(self._device), forbid_synchronisation():
                return self._take(images, labels)
        except RuntimeError as error:
            if "synchroniz" not in str(error):
                raise
            logger.info("the training step is not recorded: %s", error)
            self._replay = False
            return self._take(images, labels)

    def _record(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        """Record the step without running it. Old gradients are dropped, so that new ones use the graph's memory."""
        self._model.zero_grad(set_to_none=True)
        self._images, self._labels = images.clone(), labels.clone()
        graph = torch.cuda.CUDAGraph()
        with capture(graph, self._device):
            self._value = self._take(self._images, self._labels)
        self._graph = graph


def first_tensor(output: object) -> torch.Tensor:
    """Return the logits in a network's output: the output itself, or the first item of a tuple or list.

    In training mode GoogLeNet and Inception return the outputs of auxiliary heads after the logits.

    Raises:
        TypeError: The output is neither a tensor nor a sequence that starts with one.
    """
    found = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(found, torch.Tensor):
        raise TypeError(
            f"the network must return a tensor of logits, or a tuple or list that begins with it; it returned a "
            f"{type(output).__name__}"
        )
    return found
