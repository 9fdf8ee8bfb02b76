"""Checks that settings, problem and evaluator of an environment fit together."""

from __future__ import annotations

from dataclasses import fields

from ..common.fingerprints import qualified_name
from ..data.objective import Metric, check_loss
from ..evaluation.config import EvaluationConfig
from ..evaluation.evaluator import Evaluator
from ..pruning.problem import ProblemConfig, PruningProblem
from .config import EnvConfig
from .reward import RewardFunction


def check_settings(config: EnvConfig, problem: PruningProblem, reward: RewardFunction | None) -> None:
    """Check the settings of an environment against its problem and reward.

    Raises:
        ValueError: The problem was made with other settings, a target is missing, or a loss is missing.
    """
    _check_equal(config, problem.config, ProblemConfig, "the problem was created")
    if reward is None and config.reward == "budget" and config.target_macs is None:
        raise ValueError("reward 'budget' pays for accuracy alone and needs target_macs; set it, or use 'tradeoff'")
    if config.trains:
        check_loss(problem.loss, problem.data)


def check_evaluator(config: EnvConfig, problem: PruningProblem, evaluator: Evaluator) -> None:
    """Check that an evaluator answers for the problem under the environment's settings.

    Raises:
        ValueError: It was made for another problem or with other settings.
    """
    if evaluator.problem is not problem:
        raise ValueError("the evaluator was made for another problem; give both the same PruningProblem")
    _check_equal(config, evaluator.config, EvaluationConfig, "the evaluator was made")


def check_original(accuracy: float, metric: Metric | None, config: EnvConfig) -> None:
    """Check the original network's accuracy: rewards are ratios to it, and `amc` pays for an error of at most 1.

    Raises:
        ValueError: It is not above 0, or above 1 with the reward `amc`.
    """
    if accuracy <= 0:
        raise ValueError(
            "the original network classifies none of the reward images correctly; train it first, and check that data "
            "and normalisation are those it was trained with"
            if metric is None
            else f"metric {qualified_name(metric)} is {accuracy} for the original network. It must be above 0, because "
            "rewards are ratios to it, and more must be better: train the network, or shift or invert the metric"
        )
    if metric is not None and config.reward == "amc" and accuracy > 1:
        raise ValueError(
            f"metric {qualified_name(metric)} is {accuracy} for the original network. Reward 'amc' pays for the error "
            "1 - metric and needs a metric of at most 1: use 'budget' or 'tradeoff'"
        )


def _check_equal(
    config: EnvConfig, other: ProblemConfig, kind: type[ProblemConfig] | type[EvaluationConfig], where: str
) -> None:
    for field in fields(kind):
        ours, theirs = getattr(config, field.name), getattr(other, field.name)
        if ours != theirs:
            raise ValueError(
                f"{field.name} is {ours!r} in config, but {where} with {field.name}={theirs!r}; "
                "use one EnvConfig for both"
            )
