"""Every finished plan with its accuracy, so that the best networks of any algorithm can be taken at the end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..pruning import Plan


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


class Archive:
    """Distinct finished plans in the order of their first evaluation."""

    def __init__(self) -> None:
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
        return _ReadOnly(self._entries)

    def best(self, count: int = 1, target_macs: float | None = None) -> list[Entry]:
        """Return the `count` best entries, the best first; ties in order of evaluation.

        Args:
            count: Number of entries.
            target_macs: Rank the entries that keep at most this fraction of the MACs, by accuracy. None ranks all
                entries by their return; with the reward `budget` and one target, these are the most accurate plans.

        Raises:
            ValueError: `count` is below 1.
        """
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        if target_macs is None:
            return sorted(self, key=lambda entry: -entry.episode_return)[:count]
        affordable = (entry for entry in self if entry.macs_ratio <= target_macs)
        return sorted(affordable, key=lambda entry: -entry.accuracy)[:count]

    def front(self) -> list[Entry]:
        """Return the Pareto front: entries that are more accurate than all cheaper ones, the cheapest first."""
        front: list[Entry] = []
        for entry in sorted(self, key=lambda entry: (entry.macs_ratio, -entry.accuracy)):
            if not front or entry.accuracy > front[-1].accuracy:
                front.append(entry)
        return front

    def state_dict(self) -> dict[str, Any]:
        """Return the contents as plain lists and numbers."""
        return {"entries": [[list(e.plan), e.accuracy, e.macs_ratio, e.params_ratio, e.episode_return] for e in self]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the contents by those of a `state_dict`."""
        entries = [Entry(tuple(plan), *numbers) for plan, *numbers in state["entries"]]
        self._entries.clear()  # in place: views share it
        self._entries.update((entry.plan, entry) for entry in entries)


class _ReadOnly(Archive):
    def __init__(self, entries: dict[Plan, Entry]) -> None:
        self._entries = entries

    def add(self, entry: Entry) -> bool:
        return False
