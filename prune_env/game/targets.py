"""The budgets of a game, and which of them an episode gets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

import numpy as np

from ..common.settings import checked
from .budget import Budget, Target

Card = TypeVar("Card")
Targets = Target | tuple[Target, ...] | None
"""One target, several targets, or None for no budget."""


def target_tuple(targets: Targets) -> tuple[float | None, ...]:
    """Return the distinct targets of a game in the order given; (None,) for a game without a budget."""
    return tuple(dict.fromkeys(targets)) if isinstance(targets, tuple) else (targets,)


def smallest_target(targets: Sequence[float], ratio: float) -> float | None:
    """Return the smallest target that a plan with this cost ratio meets, or None if it meets none."""
    return min((target for target in targets if ratio <= target), default=None)


class Deck(Generic[Card]):
    """Deals the targets or games of episodes like cards: shuffled, dealt to the last one, shuffled again.

    After every full deck, all cards have been played equally often. The deck is not shuffled early when an episode
    starts with a seed, because learners seed every episode.
    """

    def __init__(self, cards: Sequence[Card]) -> None:
        self.cards = tuple(cards)
        self.left: list[Card] = []
        """Cards that remain in the deck, the next one last."""

    def deal(self, rng: np.random.Generator) -> Card:
        """Return the card of the next episode."""
        if len(self.cards) == 1:
            return self.cards[0]
        if not self.left:
            self.left = [self.cards[index] for index in rng.permutation(len(self.cards))]
        return self.left.pop()


class Budgets:
    """The budgets of a game: equal rules with one target or several.

    Args:
        rules: The rules without a target.
        targets: The distinct targets; (None,) for a game without a budget.

    Raises:
        ValueError: A target is out of reach.
    """

    def __init__(self, rules: Budget, targets: Sequence[float | None]) -> None:
        self._rules = rules
        self._known = {target: rules.with_target(target) for target in targets}
        self.first = self._known[targets[0]]
        """The budget of the first target."""
        self.deck = Deck(targets)

    def __iter__(self) -> Iterator[Budget]:
        return iter(self._known.values())

    def of(self, target: float) -> Budget:
        """Return the budget of a target, which need not be one of the game's.

        Raises:
            ValueError: The target is no fraction in (0, 1] or out of reach, or the game has no budget.
        """
        if None in self._known:
            raise ValueError(f"target {target} has no effect in a game without a budget; set target_macs in EnvConfig")
        checked(f"target_{self._rules.cost_name}", target, Target)
        return self._known.get(target) or self._rules.with_target(target)

    def deal(self, rng: np.random.Generator) -> Budget:
        """Return the budget of the next episode."""
        return self._known[self.deck.deal(rng)]

    def only(self, target: float) -> Budgets:
        """Return the budgets of a game with this target alone."""
        return Budgets(self._rules, (self.of(target).target,))
