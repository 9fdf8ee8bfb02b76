"""The measurement itself: select a plan's weights, recalibrate BatchNorm, fold, count. Remembers nothing.

A `Task` holds all that an answer depends on, so that it can be sent to another process or another machine.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from ..common.device import channels_last
from ..data import Split
from ..data.objective import Metric
from ..pruning import Plan, PruningGroup, build
from ..scoring.batchnorm import even_batches, fold, folding_pairs, recalibrate
from ..scoring.metric import apply_metric
from ..training.finetune import Finetuner
from .engine.cuda_recording import Recording, recording
from .engine.program import Program
from .racing import Race

BATCHES = {"cpu": 250, "cuda": 2000}
"""Images at a time: as many as fit a processor's cache, or keep a GPU busy."""


@dataclass(frozen=True, eq=False)
class Task:
    """What is measured, and on what. Tensors of images are normalised, in the precision that is run."""

    model: nn.Module
    """The trained, unpruned network in float32 and eval mode."""
    groups: Sequence[PruningGroup]
    ranking: Mapping[str, torch.Tensor]
    example_input: torch.Tensor  # float32 [2, C, H, W]
    calibration: torch.Tensor  # [N, C, H, W], the fixed crops
    split: Split
    """The reward images, in an order that a race may stop at."""
    metric: Metric | None
    device: torch.device
    dtype: torch.dtype
    tuning: Finetuner | None = None
    """What networks that are pruned get before they are measured."""


class Measurer:
    """Accuracy of plans and networks on a task's images; equal questions get equal answers."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.batch = batch_size(task.device)
        # A metric of the user's is given ordinary networks, which it may look into, and of which each is new.
        self._pairs = folding_pairs(task.model, task.example_input) if task.metric else []
        self._program = None
        if task.metric is None:
            self._program = Program(task.model, task.groups, task.example_input, dtype=task.dtype, device=task.device)
        self._recording = self._recorded()

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_recording": None}  # part of this process

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._recording = self._recorded()

    def _recorded(self) -> Recording | None:
        task = self.task
        if task.metric is not None or task.tuning is not None or task.device.type != "cuda":
            return None
        calibration = even_batches(task.calibration, self.batch)
        batches = list(zip(task.split.images.split(self.batch), task.split.labels.split(self.batch), strict=True))
        return recording(task.model, task.groups, task.ranking, task.example_input, calibration, batches)

    @property
    def recorded(self) -> bool:
        """Whether plans are measured by a recording."""
        return self._recording is not None

    @property
    def settings(self) -> tuple[object, ...]:
        """What answers depend on besides the task."""
        return (self.batch, "recorded") if self.recorded else (self.batch,)

    def accuracy(self, what: Plan | nn.Module, race: Race | None = None, *, fresh_statistics: bool = True) -> float:
        """Of a plan, or of a network that was cut out of the model and trained since, maybe; it is not changed.

        race   may end the count early; what was counted is then the answer. A recording counts all, sooner
        fresh_statistics   whether BatchNorm is recalibrated first
        """
        task = self.task
        what = self._tuned(what)
        if self._program is None:
            return self._by_metric(what, fresh_statistics)
        if self._recording is not None and fresh_statistics and not isinstance(what, nn.Module):
            return self._recording.right(what) / len(task.split)
        if isinstance(what, nn.Module):
            self._program.load_network(what)
        else:
            self._program.load(task.ranking, what)
        if fresh_statistics:
            self._program.recalibrate(even_batches(task.calibration, self.batch))
        return apply_metric(partial(_top1, race, self.batch), self._program.network, task.split)

    def network(self, plan: Plan) -> nn.Module:
        """The one that `accuracy` measures, on the device and in eval mode."""
        task, what = self.task, self._tuned(plan)
        network = what if isinstance(what, nn.Module) else build(task.model, task.groups, task.ranking, what)
        self.recalibrate(network)
        return network.eval()

    def recalibrate(self, network: nn.Module) -> None:
        """Estimates the network's BatchNorm statistics on the fixed calibration crops, in place and on the device."""
        device, dtype = self.task.device, self.task.dtype
        channels_last(network.to(device))
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            recalibrate(network, even_batches(self.task.calibration, self.batch))

    def _tuned(self, what: Plan | nn.Module) -> Plan | nn.Module:
        """Trained briefly, if that is asked for. The unpruned network has nothing to recover from."""
        task = self.task
        if task.tuning is None:
            return what
        if isinstance(what, nn.Module):
            return task.tuning(what)
        if tuple(what) == tuple(group.filters for group in task.groups):
            return what
        return task.tuning(build(task.model, task.groups, task.ranking, what))

    def _by_metric(self, what: Plan | nn.Module, fresh_statistics: bool) -> float:
        task = self.task
        assert task.metric is not None
        if isinstance(what, nn.Module):
            network = copy.deepcopy(what)
        else:
            network = build(task.model, task.groups, task.ranking, what)
        if fresh_statistics:
            self.recalibrate(network)
        network.eval().to(task.device)
        fold(network, self._pairs)
        return apply_metric(task.metric, channels_last(network.to(task.dtype)), task.split)


def batch_size(device: torch.device) -> int:
    """Images at a time on a device."""
    return BATCHES.get(device.type, BATCHES["cpu"])


def _top1(race: Race | None, batch: int, network: nn.Module, split: Split) -> float:
    right, seen = 0, 0
    for images, labels in zip(split.images.split(batch), split.labels.split(batch), strict=True):
        right += int((network(images).argmax(1) == labels).sum())
        seen += len(labels)
        if race is not None and race.is_lost(right, seen, len(split)):
            break
    return right / seen
