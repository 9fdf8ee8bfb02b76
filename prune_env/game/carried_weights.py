"""The network of an episode whose weights are carried from round to round.

After every round the smaller network is distilled for some batches and keeps its weights. A plan then no longer names
one network, because the weights of a filter depend on the rounds before.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from ..pruning import Plan, build, restrict
from ..pruning.problem import PruningProblem
from ..training.distillation import DistillationConfig, distil
from ..training.fit import RunOptions
from .config import EnvConfig


class CarriedWeights:
    """Cuts and distils one network, round by round.

    Args:
        problem: The original network, which is also the teacher, its data and its loss.
        config: Its `round_finetune_batches` are the batches of distillation after every round; 0 turns the whole object
            off.
        device: Device of the training.
    """

    def __init__(self, problem: PruningProblem, config: EnvConfig, device: torch.device) -> None:
        self._problem, self._batches, self._device = problem, config.round_finetune_batches, device
        self._precision = config.precision
        self.reset()

    @property
    def on(self) -> bool:
        """Whether weights are carried at all."""
        return self._batches > 0

    def reset(self) -> None:
        """Return to the original network."""
        self._network = self._problem.model
        self._groups, self._ranking = list(self._problem.groups), self._problem.ranking

    def step(self, plan: Plan, round_number: int) -> None:
        """Cut the network to a plan and distil it."""
        smaller = build(self._network, self._groups, self._ranking, plan)
        self._groups, self._ranking = restrict(self._groups, self._ranking, plan)
        images = len(self._problem.data.train)
        batch_size = min(128, images)
        config = DistillationConfig(
            epochs=self._batches / max(1, images // batch_size),
            min_steps=0,
            batch_size=batch_size,
            ema_decay=0.0,
            select_best=False,
            precision=self._precision,
            seed=self._problem.config.problem_seed + round_number,
        )
        self._network = distil(
            smaller,
            self._problem.model,
            self._problem.data,
            config,
            loss=self._problem.loss,
            run=RunOptions(self._device, progress=False),
        )

    def network(self) -> nn.Module:
        """Return a copy of the network."""
        return copy.deepcopy(self._network)
