"""Reward functions: pure, of one round, and the same number for every agent.

Accuracies are fractions of the reward images in [0, 1]; MACs are fractions of the unpruned network's. A round whose
network was not evaluated passes the last known accuracy on, so that its accuracy term is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log
from typing import NamedTuple


@dataclass(frozen=True)
class RewardInput:
    """What one round did. Raises ValueError if the unpruned network gets nothing right."""

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
                f"original_accuracy must be above 0, got {self.original_accuracy}: there is nothing to keep; train the "
                "network first, and check that data and normalisation are those it was trained with"
            )


class RoundReward(NamedTuple):
    """The team's reward for a round, and whether the network is so bad that the episode ends here."""

    reward: float
    ended: bool = False


RewardFunction = Callable[[RewardInput], RoundReward]


def budget(step: RewardInput) -> RoundReward:
    """The change of accuracy / original accuracy, for tasks whose budget fixes the cost.

    It is a difference of potentials (Ng, Harada & Russell 1999), so an episode's return is the final accuracy ratio
    minus one, whether or not the rounds in between were evaluated.
    """
    return RoundReward((step.accuracy_after - step.accuracy_before) / step.original_accuracy)


@dataclass(frozen=True)
class Tradeoff:
    """The change of accuracy ratio plus `macs_weight` times the MACs saved, for tasks without a budget.

    An episode's return is (accuracy ratio - 1) + macs_weight * (1 - MACs ratio). With 0.5, saving half of the MACs is
    worth a quarter of the accuracy. The episode ends when the accuracy ratio falls below `accuracy_floor`.
    """

    macs_weight: float = 0.5
    accuracy_floor: float = 0.5

    def __post_init__(self) -> None:
        if not self.macs_weight >= 0:
            raise ValueError(f"macs_weight must not be negative, got {self.macs_weight}; 0 pays for accuracy alone")
        if not 0 <= self.accuracy_floor <= 1:
            raise ValueError(
                f"accuracy_floor must be in [0, 1], a fraction of the unpruned accuracy; got {self.accuracy_floor}"
            )

    def __call__(self, step: RewardInput) -> RoundReward:
        accuracy = (step.accuracy_after - step.accuracy_before) / step.original_accuracy
        saved = step.macs_before - step.macs_after
        ended = tradeoff_ended(step.accuracy_after / step.original_accuracy, self.accuracy_floor)
        return RoundReward(accuracy + self.macs_weight * saved, ended)


def tradeoff_ended(accuracy_ratio: float, floor: float) -> bool:
    """Whether so little accuracy is left that the network is lost; exactly on the floor it is not."""
    return accuracy_ratio < floor


def amc(step: RewardInput) -> RoundReward:
    """-error * log4(2 + 2 * MACs ratio) in the last round and 0 before, in [-1, 0].

    AMC (He et al. 2018, arXiv:1802.03494) pays -error * log(FLOPs). With raw MACs the logarithm of a constant drowns
    the accuracy (values of -13.6), and with the bare ratio it changes sign, so that errors would pay. This logarithm is
    1 for the unpruned network and falls to 1/2 as the MACs go to 0: fewer errors and fewer MACs are always better, and
    an error never comes free.
    """
    if not step.last:
        return RoundReward(0.0)
    return RoundReward(-(1 - step.accuracy_after) * log(2 + 2 * step.macs_after, 4))


REWARDS: dict[str, RewardFunction] = {"budget": budget, "tradeoff": Tradeoff(), "amc": amc}


def get_reward(reward: str | RewardFunction) -> RewardFunction:
    """The registered function of that name; a function of one's own is returned as it is.

    Raises ValueError that lists the names.
    """
    if callable(reward):
        return reward
    if reward not in REWARDS:
        raise ValueError(
            f"reward {reward!r} is unknown; choose one of {', '.join(sorted(REWARDS))}, or pass a function of "
            "RewardInput that returns a RoundReward"
        )
    return REWARDS[reward]
