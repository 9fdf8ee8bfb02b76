"""Measure one accuracy: select a plan's weights, recalibrate BatchNorm, fold it into the convolutions, count.

Nothing is remembered here. A `Task` holds everything that an accuracy depends on, so it can be sent to another process
or machine.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from ..common.memory_format import channels_last
from ..data import TensorSplit
from ..data.objective import Metric
from ..pruning import Plan, PruningGroup, build
from ..scoring.batchnorm import even_batches, fold, folding_pairs, recalibrate
from ..scoring.metric import apply_metric, default_metric, images_at_once
from ..training.finetune import Finetuner
from .engine.cuda_recording import Recording, recording
from .engine.program import Program

BATCH_SIZES = {"cpu": 250, "cuda": 2000}
"""Images per batch by device type: they fit the cache of a processor, or keep a GPU busy."""


@dataclass(frozen=True, eq=False)
class Task:
    """Everything that an accuracy depends on. Images are normalised and in the precision of the forward pass."""

    model: nn.Module
    """The original network, float32, eval mode."""
    groups: Sequence[PruningGroup]
    ranking: Mapping[str, torch.Tensor]
    example_input: torch.Tensor  # float32 [2, C, H, W]
    calibration: torch.Tensor  # [N, C, H, W], fixed crops
    split: TensorSplit
    """The reward images."""
    metric: Metric | None
    device: torch.device
    dtype: torch.dtype
    layout: torch.memory_format = torch.channels_last
    """Memory format of weights and images."""
    finetuner: Finetuner | None = None
    """Trains pruned networks before they are measured."""


class Measurer:
    """Measures the accuracy of plans and networks on a task's images. Equal plans get equal accuracies."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.batch_size = images_at_once(task.split, BATCH_SIZES.get(task.device.type, BATCH_SIZES["cpu"]))
        # A user's metric may inspect the network, so it gets an ordinary module, and a new one every time.
        self._pairs = folding_pairs(task.model, task.example_input) if task.metric else []
        self._program = None
        if task.metric is None:
            example = task.example_input.to(task.device)
            self._program = Program(task.model, task.groups, example, dtype=task.dtype, layout=task.layout)
        self._recording = make_recording(task, self.batch_size)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_recording": None}  # a CUDA graph belongs to its process

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._recording = make_recording(self.task, self.batch_size)

    @property
    def settings(self) -> tuple[object, ...]:
        """What accuracies depend on besides the task."""
        return (self.batch_size, "recorded") if self._recording is not None else (self.batch_size,)

    def accuracy(self, what: Plan | nn.Module, *, recalibrated: bool = True) -> float:
        """Measure a plan, or an already pruned, possibly finetuned network. The network is not modified.

        Args:
            what: The plan or the network.
            recalibrated: Re-estimate BatchNorm statistics first; otherwise the stored ones count.
        """
        task = self.task
        what = self._finetuned(what)
        if self._program is None:
            return self._metric(what, recalibrated)
        if self._recording is not None and recalibrated and not isinstance(what, nn.Module):
            return self._recording.count_correct(what) / len(task.split)
        if isinstance(what, nn.Module):
            self._program.load_network(what)
        else:
            self._program.load(task.ranking, what)
        if recalibrated:
            self._program.recalibrate(even_batches(task.calibration, self.batch_size))
        return apply_metric(partial(default_metric, batch_size=self.batch_size), self._program.network, task.split)

    def network(self, plan: Plan) -> nn.Module:
        """Return the network that `accuracy` measures, on the device and in eval mode."""
        what = self._finetuned(plan)
        network = what if isinstance(what, nn.Module) else self._build(what)
        self.recalibrate(network)
        return network.eval()

    def recalibrate(self, network: nn.Module) -> None:
        """Re-estimate BatchNorm statistics on the calibration crops, in place. The network moves to the device."""
        device, dtype = self.task.device, self.task.dtype
        channels_last(network.to(device), self.task.layout)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            recalibrate(network, even_batches(self.task.calibration, self.batch_size))

    def test_original(self) -> float:
        """Test whether the original network runs in the task's precision, in every way in which networks are run.

        Returns:
            Its accuracy with the stored BatchNorm statistics.
        """
        task = self.task
        network = channels_last(copy.deepcopy(task.model).to(task.device), task.layout)
        with torch.inference_mode(), torch.autocast(task.device.type, task.dtype, enabled=task.dtype != torch.float32):
            network(task.calibration[:2])
        return self.accuracy(tuple(group.filters for group in task.groups), recalibrated=False)

    def _build(self, plan: Plan) -> nn.Module:
        return build(self.task.model, self.task.groups, self.task.ranking, plan)

    def _finetuned(self, what: Plan | nn.Module) -> Plan | nn.Module:
        """Return the finetuned network if there is a finetuner. The original network needs none."""
        task = self.task
        if task.finetuner is None:
            return what
        if isinstance(what, nn.Module):
            return task.finetuner(what)
        if tuple(what) == tuple(group.filters for group in task.groups):
            return what
        return task.finetuner(self._build(what))

    def _metric(self, what: Plan | nn.Module, recalibrated: bool) -> float:
        task = self.task
        assert task.metric is not None
        network = copy.deepcopy(what) if isinstance(what, nn.Module) else self._build(what)
        if recalibrated:
            self.recalibrate(network)
        network.eval().to(task.device)
        fold(network, self._pairs)
        return apply_metric(task.metric, channels_last(network.to(task.dtype), task.layout), task.split)


def make_recording(task: Task, batch_size: int) -> Recording | None:
    """Record the measurement of plans as a CUDA graph.

    Returns:
        The recording, or None on other devices, for custom metrics and masks, with finetuning, and for networks that
        cannot be recorded.
    """
    is_counted = task.metric is None and not task.split.has_masks
    if not is_counted or task.finetuner is not None or task.device.type != "cuda":
        return None
    calibration = even_batches(task.calibration, batch_size)
    batches = list(zip(task.split.images.split(batch_size), task.split.labels.split(batch_size), strict=True))
    return recording(task.model, task.groups, task.ranking, task.example_input, calibration, batches)
