"""The evaluators that an environment makes: one that measures, and one for games that an agent only imagines."""

from __future__ import annotations

from torch import nn

from ..evaluation.evaluator import DelegatingEvaluator
from ..evaluation.live import LiveEvaluator
from ..evaluation.resources import Resources
from ..pruning import Plan
from ..pruning.problem import PruningProblem
from .config import EnvConfig
from .validation import check_original


def live_evaluator(problem: PruningProblem, config: EnvConfig, resources: Resources | None) -> LiveEvaluator:
    """Return an evaluator that measures, if the original network's accuracy allows rewards.

    Raises:
        ValueError: It does not, or `LiveEvaluator` refuses an argument.
    """
    evaluator = LiveEvaluator(problem, config, resources)
    try:
        check_original(evaluator.original_accuracy, problem.metric, config)
    except ValueError:
        evaluator.close()
        raise
    return evaluator


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
