"""One step of training: forward, loss, backward, optimizers.

On a GPU a small network's kernels end before the next ones are launched, so the step is recorded once as a CUDA graph
and replayed: the same kernels on the same memory, launched together.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import nn

from ..common.cuda_graphs import aside, capturing, refusing_to_wait
from ..data.objective import Loss

WARM_UP = 3
"""Steps before the recording: optimizers then have their buffers, and libraries their workspaces."""
WORTH_RECORDING = 30
"""Steps to come, at least."""

logger = logging.getLogger(__name__)


class Step:
    """Calling it with a batch takes one step and gives the loss, which the next call may overwrite.

    optimizers  each with its peak learning rate, in the state that training goes on from
    replay      whether to record the step, where there is a GPU; what waits for the GPU goes on without
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        optimizers: Mapping[torch.optim.Optimizer, float],
        device: torch.device,
        dtype: torch.dtype,
        replay: bool,
    ) -> None:
        self._model, self._loss, self._optimizers = model, loss, optimizers
        self._device, self._dtype = device, dtype
        self._replay = replay and device.type == "cuda"
        self._steps = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._images = self._labels = self._value = torch.empty(0)
        if self._replay:
            for group in (group for optimizer in optimizers for group in optimizer.param_groups):
                group["lr"] = torch.zeros((), device=device)  # a recording reads it from the GPU's memory

    def set_learning_rates(self, share: float) -> None:
        """Of each optimizer's peak."""
        for optimizer, peak in self._optimizers.items():
            for group in optimizer.param_groups:
                if self._replay:
                    group["lr"].fill_(peak * share)
                else:
                    group["lr"] = peak * share

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Normalised images [B, C, H, W], labels [B] or [B, K] -> the loss before the step, a scalar."""
        if not self._replay:
            return self._taken(images, labels)
        self._steps += 1
        if self._steps < WARM_UP:
            with aside(self._device):
                return self._taken(images, labels)
        if self._steps == WARM_UP:
            return self._tried(images, labels)
        if self._graph is None:
            self._record(images, labels)
            assert self._graph is not None
        self._images.copy_(images)
        self._labels.copy_(labels)
        self._graph.replay()
        return self._value

    def _taken(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32):
            value = self._loss(first_tensor(self._model(images)).float(), images, labels)
        self._model.zero_grad(set_to_none=True)
        value.backward()
        for optimizer in self._optimizers:
            optimizer.step()
        return value.detach()

    def _tried(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """One step; if it waits for the GPU, none is recorded."""
        try:
            with aside(self._device), refusing_to_wait():
                return self._taken(images, labels)
        except RuntimeError as error:
            if "synchroniz" not in str(error):
                raise
            logger.info("the training step is not recorded: %s", error)
            self._replay = False
            return self._taken(images, labels)

    def _record(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        """Nothing is computed here. Gradients are dropped first: they then belong to the recording's memory."""
        self._model.zero_grad(set_to_none=True)
        self._images, self._labels = images.clone(), labels.clone()
        graph = torch.cuda.CUDAGraph()
        with capturing(graph, self._device):
            self._value = self._taken(self._images, self._labels)
        self._graph = graph


def first_tensor(output: object) -> torch.Tensor:
    """The logits in a network's output: the output itself, or the first of a tuple or list of tensors.

    GoogLeNet and Inception return their auxiliary heads behind it in training mode. Raises TypeError for all else.
    """
    found = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(found, torch.Tensor):
        raise TypeError(
            f"the network must return a tensor of logits, or a tuple or list that begins with it; it returned a "
            f"{type(output).__name__}"
        )
    return found
