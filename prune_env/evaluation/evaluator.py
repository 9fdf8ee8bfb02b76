"""The `Evaluator` protocol, and a base class that forwards to another evaluator."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn

from ..pruning import Plan
from ..pruning.problem import PruningProblem
from .config import EvaluationConfig


class Evaluator(Protocol):
    """Returns the accuracy of plans of one problem.

    `LiveEvaluator` measures it, `TabulatedEvaluator` looks it up, and a `DelegatingEvaluator` adds something to another
    one. The protocol only describes the members: do not derive from it.
    """

    @property
    def problem(self) -> PruningProblem:
        """The problem whose plans are evaluated."""

    @property
    def config(self) -> EvaluationConfig:
        """The settings that the accuracies depend on."""

    @property
    def device(self) -> torch.device:
        """The device of the networks."""

    @property
    def original_accuracy(self) -> float:
        """Accuracy of the original network, measured as for every plan."""

    def accuracy(self, plan: Plan) -> float:
        """Return the accuracy of a plan's network on the reward images, or its metric."""

    def submit(self, plan: Plan) -> None:
        """Announce that `accuracy` will be called for this plan soon, so that workers can start."""

    def accuracy_of(self, network: nn.Module) -> float:
        """Return the accuracy of an already pruned, possibly finetuned network. The network is not modified."""

    def network(self, plan: Plan) -> nn.Module:
        """Return the network whose accuracy `accuracy` measures, with recalibrated BatchNorm statistics."""

    def recalibrate(self, network: nn.Module) -> None:
        """Re-estimate the network's BatchNorm statistics on the calibration images, in place, on the device."""

    def remember(self, plan: Plan, accuracy: float) -> None:
        """Take over the accuracy of a plan from an earlier run."""

    def close(self) -> None:
        """Release workers; they start again when they are needed."""


class DelegatingEvaluator:
    """Forwards every member of the protocol to another evaluator. Derive from it and override what differs.

    Args:
        evaluator: The other evaluator.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator

    @property
    def problem(self) -> PruningProblem:
        """See `Evaluator`."""
        return self.evaluator.problem

    @property
    def config(self) -> EvaluationConfig:
        """See `Evaluator`."""
        return self.evaluator.config

    @property
    def device(self) -> torch.device:
        """See `Evaluator`."""
        return self.evaluator.device

    @property
    def original_accuracy(self) -> float:
        """See `Evaluator`."""
        return self.evaluator.original_accuracy

    def accuracy(self, plan: Plan) -> float:
        """See `Evaluator`."""
        return self.evaluator.accuracy(plan)

    def submit(self, plan: Plan) -> None:
        """See `Evaluator`."""
        self.evaluator.submit(plan)

    def accuracy_of(self, network: nn.Module) -> float:
        """See `Evaluator`."""
        return self.evaluator.accuracy_of(network)

    def network(self, plan: Plan) -> nn.Module:
        """See `Evaluator`."""
        return self.evaluator.network(plan)

    def recalibrate(self, network: nn.Module) -> None:
        """See `Evaluator`."""
        self.evaluator.recalibrate(network)

    def remember(self, plan: Plan, accuracy: float) -> None:
        """See `Evaluator`."""
        self.evaluator.remember(plan, accuracy)

    def close(self) -> None:
        """See `Evaluator`."""
        self.evaluator.close()
