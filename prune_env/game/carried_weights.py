"""Recovery between rounds: the pruned network is distilled for a few batches and carries its weights on.

A plan no longer names a network then: what a filter weighs depends on the rounds before.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from ..data import DataSplits
from ..data.objective import Loss
from ..pruning import Plan, PruningGroup, build, restrict
from ..training.distillation import DistillationConfig, distill
from ..training.fit import RunOptions
from .config import EnvConfig


class CarriedWeights:
    """The network of an episode whose weights are carried from round to round. Off when no batches are asked for."""

    def __init__(
        self,
        model: nn.Module,
        data: DataSplits,
        groups: Sequence[PruningGroup],
        ranking: Mapping[str, torch.Tensor],
        config: EnvConfig,
        device: torch.device | str,
        loss: Loss | None = None,
    ) -> None:
        self.on = config.round_finetune_batches > 0
        self._loss = loss
        self._teacher, self._data, self._device = model, data, device
        self._batches, self._seed = config.round_finetune_batches, config.problem_seed
        self._original = (groups, ranking)
        self.reset()

    def reset(self) -> None:
        """Back to the unpruned network."""
        self._network = self._teacher
        self._groups, self._ranking = self._original

    def step(self, plan: Plan, round_number: int) -> None:
        """Cuts the carried network down to `plan` and distils it."""
        smaller = build(self._network, self._groups, self._ranking, plan)
        self._groups, self._ranking = restrict(self._groups, self._ranking, plan)
        batch_size = min(128, len(self._data.train))
        config = DistillationConfig(
            epochs=self._batches / max(1, len(self._data.train) // batch_size),
            min_steps=0,
            batch_size=batch_size,
            ema_decay=0.0,
            seed=self._seed + round_number,
            select_best=False,
        )
        self._network = distill(
            smaller,
            self._teacher,
            self._data,
            config,
            loss=self._loss,
            run=RunOptions(self._device, progress=False),
        )

    def network(self) -> nn.Module:
        """A copy of the carried network."""
        return copy.deepcopy(self._network)
