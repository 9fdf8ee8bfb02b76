"""The evaluator of games that an agent only imagines."""

from __future__ import annotations

from torch import nn

from ..evaluation.evaluator import DelegatingEvaluator
from ..pruning import Plan


class ImaginedEvaluator(DelegatingEvaluator):
    """Returns the accuracy of the original network for every plan, and measures nothing."""

    def accuracy(self, plan: Plan) -> float:
        """Return the original network's accuracy."""
        return self.original_accuracy

    def accuracy_of(self, network: nn.Module) -> float:
        """Return the original network's accuracy."""
        return self.original_accuracy

    def submit(self, plan: Plan) -> None:
        """Do nothing: no plan is measured."""
