"""Checks that settings, problem, evaluator and actions of an environment fit together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields

import numpy as np
from gymnasium import spaces

from ..common.fingerprints import qualified_name
from ..common.warn import warn
from ..data import DataSplits
from ..data.objective import Loss, Metric, check_loss
from ..evaluation.config import EvaluationConfig
from ..evaluation.evaluator import Evaluator
from ..evaluation.resources import Resources
from ..pruning.problem import ProblemConfig, PruningProblem
from . import render
from .budget import Budget
from .config import EnvConfig
from .reward import RewardFunction


def check_rules(config: EnvConfig, reward: RewardFunction | None, render_mode: str | None) -> None:
    """Check what needs neither network nor data, so that nothing expensive happens before an error.

    Raises:
        ValueError: A target is missing, or the render mode is unknown.
    """
    if render_mode is not None and render_mode not in render.MODES:
        raise ValueError(f"render_mode {render_mode!r} is unknown; choose one of {', '.join(render.MODES)} or None")
    if reward is None and config.reward == "budget" and None in config.targets:
        raise ValueError("reward 'budget' pays for accuracy alone and needs target_macs; set it, or use 'tradeoff'")


def check_training(config: EnvConfig, loss: Loss | None, data: DataSplits) -> None:
    """Check that there is a loss if the game trains networks.

    Raises:
        ValueError: The data have no classes, and there is no loss.
    """
    if config.trains:
        check_loss(loss, data)


def check_problem(config: EnvConfig, problem: PruningProblem) -> None:
    """Check the settings of an environment against its problem.

    Raises:
        ValueError: The problem was created with other settings, or a loss is missing.
    """
    _check_equal(config, problem.config, ProblemConfig, "the problem was created")
    check_training(config, problem.loss, problem.data)


def warn_coarse(budget: Budget) -> None:
    """Warn if filters are so coarse that no plan was found within the budget's tolerance."""
    if budget.target is None or budget.meets(budget.uniform()):
        return
    below, above = (f"{ratio:.4f}" for ratio in budget.ratios_around_target())
    round_to = np.max(budget.limits.round_to)
    smaller = ", or a smaller round_to," if round_to > 1 else ""
    warn(
        f"{budget} cannot be met within {budget.tolerance} of the {budget.unit}: groups of "
        f"{min(budget.full_plan)} to {max(budget.full_plan)} filters and round_to={round_to} are too coarse. "
        f"The plans next to it have {below} and {above} of the {budget.unit}, so finished plans lie as far below it; "
        f"choose target_{budget.cost_name}={above}{smaller} if that is too far"
    )


def warn_missed(budget: Budget, plan: Sequence[int]) -> None:
    """Warn if a finished plan lies further below the target than the budget's tolerance.

    The text is the same for every plan, so that Python shows it once.
    """
    if int(budget.cost(np.asarray(plan))) < budget.cost_range[0]:
        warn(
            f"a finished plan has over {budget.tolerance} of the {budget.unit} less than {budget}: one filter of a "
            f"group, or round_to of them, costs more than that. Its {budget.cost_name}_ratio is in the infos and in "
            "the archive; a smaller round_to comes closer",
        )


def check_evaluator(
    config: EnvConfig, problem: PruningProblem, evaluator: Evaluator, resources: Resources | None = None
) -> None:
    """Check that an evaluator answers for the problem under the environment's settings.

    Raises:
        TypeError: It lacks members of the `Evaluator` protocol; the message names them.
        ValueError: It was made for another problem or with other settings, there are `resources` as well, or the
            original network's accuracy allows no rewards.
    """
    members = [name for name in vars(Evaluator) if not name.startswith("_")]
    if missing := [name for name in members if not hasattr(evaluator, name)]:
        given = evaluator.__name__ + " itself" if isinstance(evaluator, type) else type(evaluator).__name__
        raise TypeError(
            f"the evaluator, {given}, lacks {', '.join(missing)}; see prune_env.evaluation.evaluator.Evaluator"
        )
    if resources is not None:
        raise ValueError("resources are those of the evaluator that the environment makes; give evaluator or resources")
    if evaluator.problem is not problem:
        raise ValueError("the evaluator was made for another problem; give both the same PruningProblem")
    _check_equal(config, evaluator.config, EvaluationConfig, "the evaluator was made")
    check_original(evaluator.original_accuracy, problem.metric, config)


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


def checked_actions(
    actions: Mapping[str, int],
    agents: Sequence[str],
    action_spaces: Mapping[str, spaces.Space],
    rates: Sequence[float],
) -> list[int]:
    """Return the actions in the order of the agents.

    Raises:
        ValueError: An agent is missing, or an action lies outside its space.
    """
    checked = []
    for agent in agents:
        if agent not in actions:
            raise ValueError(f"no action for agent {agent!r}; every agent of env.agents acts in every round")
        action = actions[agent]
        legal = isinstance(action, (int, np.integer)) and 0 <= action < len(rates)  # `contains` is slow
        if not legal and not action_spaces[agent].contains(action):
            raise ValueError(
                f"action {action!r} of agent {agent!r} is not in {action_spaces[agent]}; give an index into rates "
                f"{tuple(rates)}"
            )
        checked.append(int(action))
    return checked


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
