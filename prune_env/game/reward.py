"""Reward functions: pure functions of one round. All agents get the same number.

Accuracies are fractions of the reward images in [0, 1]; MACs are fractions of the original network's. A round that was
not evaluated repeats the last known accuracy, so its accuracy term is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log
from typing import NamedTuple

from ..common.fingerprints import qualified_name
from ..common.settings import Fraction, NotNegative, Settings


@dataclass(frozen=True)
class RewardInput:
    """Accuracy and cost before and after one round.

    Raises:
        ValueError: The original accuracy is not above 0.
    """

    accuracy_before: float
    accuracy_after: float
    original_accuracy: float
    macs_before: float
    macs_after: float
    last: bool
    """Whether this is the last round of the episode."""

    def __post_init__(self) -> None:
        if not self.original_accuracy > 0:
            raise ValueError(
                f"original_accuracy must be above 0, got {self.original_accuracy}: train the network first, and check "
                "that data and normalisation are those it was trained with"
            )


class RoundReward(NamedTuple):
    """The team's reward for a round."""

    reward: float
    ended: bool = False
    """Whether the network is so bad that the episode ends here."""


RewardFunction = Callable[[RewardInput], RoundReward]

REWARDS: dict[str, RewardFunction] = {}
"""Registered reward functions by name."""


def register_reward(name: str) -> Callable[[RewardFunction], RewardFunction]:
    """Register a reward function under a name that `EnvConfig.reward` accepts.

    Example:
        >>> @register_reward("squared")
        ... def squared(step):
        ...     return RoundReward((step.accuracy_after / step.original_accuracy) ** 2 if step.last else 0.0)

    Raises:
        ValueError: Another function has the name.
    """

    def register(function: RewardFunction) -> RewardFunction:
        known = REWARDS.get(name)
        if known is not None and qualified_name(known) != qualified_name(function):
            raise ValueError(f"reward {name!r} is already registered; choose another name")
        REWARDS[name] = function
        return function

    return register


@register_reward("budget")
def budget(step: RewardInput) -> RoundReward:
    """Pay the change of accuracy / original accuracy, for tasks in which the budget fixes the cost.

    The reward is a difference of potentials (Ng, Harada & Russell 1999). An episode's return is therefore the final
    accuracy ratio minus one, whether or not earlier rounds were evaluated.
    """
    return RoundReward((step.accuracy_after - step.accuracy_before) / step.original_accuracy)


@dataclass(frozen=True)
class Tradeoff(Settings):
    """Pay the change of the accuracy ratio plus `macs_weight` times the saved MACs, for tasks without a budget.

    An episode's return is (accuracy ratio - 1) + macs_weight * (1 - MACs ratio). With 0.5, half of the MACs are worth a
    quarter of the accuracy. The episode ends when the accuracy ratio falls below `accuracy_floor`.

    Raises:
        ValueError: A field lies outside its range.
    """

    macs_weight: NotNegative = 0.5
    """Reward for all of the MACs, in units of the original accuracy; 0 pays for accuracy alone."""
    accuracy_floor: Fraction = 0.5
    """Fraction of the original accuracy below which the episode ends."""

    def __call__(self, step: RewardInput) -> RoundReward:
        accuracy = (step.accuracy_after - step.accuracy_before) / step.original_accuracy
        saved = step.macs_before - step.macs_after
        ended = step.accuracy_after / step.original_accuracy < self.accuracy_floor
        return RoundReward(accuracy + self.macs_weight * saved, ended)


register_reward("tradeoff")(Tradeoff())


@register_reward("amc")
def amc(step: RewardInput) -> RoundReward:
    """Pay -error * log4(2 + 2 * MACs ratio) in the last round and 0 before; the reward lies in [-1, 0].

    AMC (He et al. 2018, arXiv:1802.03494) pays -error * log(FLOPs). With raw MACs, the constant inside the logarithm
    dominates the accuracy (values of -13.6). With the bare ratio, the logarithm changes sign and errors would pay. The
    logarithm used here is 1 for the original network and falls to 1/2 as the MACs go to 0, so fewer errors and fewer
    MACs are always better.
    """
    if not step.last:
        return RoundReward(0.0)
    return RoundReward(-(1 - step.accuracy_after) * log(2 + 2 * step.macs_after, 4))
