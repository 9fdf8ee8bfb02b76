"""Every finished plan with its accuracy, so that the best networks of any algorithm can be taken at the end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple, dataclass
from typing import Any

from ..pruning import Plan
from .costs import CostName


@dataclass(frozen=True)
class Entry:
    """A finished plan."""

    plan: Plan
    accuracy: float
    """Accuracy on the reward images."""
    macs_ratio: float
    """Fraction of the original MACs."""
    params_ratio: float
    """Fraction of the original parameters."""
    episode_return: float
    latency_ratio: float | None = None
    """Fraction of the original latency; None in games of another budget."""


class Archive:
    """Distinct finished plans in the order of their first evaluation.

    Args:
        cost: What the budget of the game limits.
    """

    def __init__(self, cost: CostName = "macs") -> None:
        self.cost = cost
        self._entries: dict[Plan, Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, plan: Plan) -> bool:
        return plan in self._entries

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def add(self, entry: Entry) -> bool:
        """Add an entry, and return whether its plan is new. A known plan keeps its place and the better return."""
        known = self._entries.get(entry.plan)
        if known is None or entry.episode_return > known.episode_return:
            self._entries[entry.plan] = entry
        return known is None

    def read_only(self) -> Archive:
        """Return a view of the same entries that adds nothing."""
        return _ReadOnly(self._entries, self.cost)

    def ratio(self, entry: Entry) -> float:
        """Return the fraction of the original cost that an entry has, as the budget of the game counts it."""
        ratio: float = getattr(entry, f"{self.cost}_ratio")
        return ratio

    def best(self, count: int = 1, target_macs: float | None = None, *, target: float | None = None) -> list[Entry]:
        """Return the `count` best entries, the best first; ties in order of evaluation.

        Args:
            count: Number of entries.
            target_macs: Rank the entries that keep at most this fraction of the MACs, by accuracy. None ranks all
                entries by their return; with the reward `budget` and one target, these are the most accurate plans.
            target: The same for the cost that the budget of the game limits.

        Raises:
            ValueError: `count` is below 1.
        """
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        if target_macs is None and target is None:
            return sorted(self, key=lambda entry: -entry.episode_return)[:count]
        affordable = (
            entry
            for entry in self
            if (target_macs is None or entry.macs_ratio <= target_macs)
            and (target is None or self.ratio(entry) <= target)
        )
        return sorted(affordable, key=lambda entry: -entry.accuracy)[:count]

    def front(self) -> list[Entry]:
        """Return the Pareto front: entries that are more accurate than all cheaper ones, the cheapest first."""
        front: list[Entry] = []
        for entry in sorted(self, key=lambda entry: (self.ratio(entry), -entry.accuracy)):
            if not front or entry.accuracy > front[-1].accuracy:
                front.append(entry)
        return front

    def state_dict(self) -> dict[str, Any]:
        """Return the contents as plain lists and numbers."""
        return {"entries": [[list(entry.plan), *astuple(entry)[1:]] for entry in self]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the contents by those of a `state_dict`."""
        entries = [Entry(tuple(plan), *numbers) for plan, *numbers in state["entries"]]
        self._entries.clear()  # in place: views share it
        self._entries.update((entry.plan, entry) for entry in entries)


class _ReadOnly(Archive):
    def __init__(self, entries: dict[Plan, Entry], cost: CostName) -> None:
        super().__init__(cost)
        self._entries = entries

    def add(self, entry: Entry) -> bool:
        return False
