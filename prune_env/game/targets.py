"""The MACs targets of a game, and which of them an episode gets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .budget import check_target_macs

Targets = float | tuple[float, ...] | None
"""One target, several targets, or None for no budget."""


def target_tuple(target_macs: Targets) -> tuple[float | None, ...]:
    """Return the distinct targets of a game in the order given; (None,) for a game without a budget."""
    return tuple(dict.fromkeys(target_macs)) if isinstance(target_macs, tuple) else (target_macs,)


def check_targets(target_macs: Targets) -> None:
    """Check that all targets are fractions in (0, 1], or that there is no budget.

    Raises:
        ValueError: A target is not, or there is none in the sequence.
    """
    if target_macs is None:
        return
    if target_macs == ():
        raise ValueError("target_macs is an empty sequence; give at least one target, or None for no budget")
    for target in target_macs if isinstance(target_macs, tuple) else (target_macs,):
        check_target_macs(target)


def smallest_target(targets: Sequence[float], macs_ratio: float) -> float | None:
    """Return the smallest target that a plan with this MACs ratio meets, or None if it meets none."""
    return min((target for target in targets if macs_ratio <= target), default=None)


class TargetDeck:
    """Deals the targets of episodes like cards: shuffled, dealt to the last one, shuffled again.

    After every full deck, all targets have been played equally often. The deck is not shuffled early when an episode
    starts with a seed, because learners seed every episode.
    """

    def __init__(self, targets: Sequence[float | None]) -> None:
        self.targets = tuple(targets)
        self.left: list[float | None] = []
        """Targets that remain in the deck, the next one last."""

    def deal(self, rng: np.random.Generator) -> float | None:
        """Return the target of the next episode."""
        if len(self.targets) == 1:
            return self.targets[0]
        if not self.left:
            self.left = [self.targets[index] for index in rng.permutation(len(self.targets))]
        return self.left.pop()
