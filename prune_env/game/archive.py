"""Every finished plan with what it scored, so that any algorithm's best networks can be taken at the end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..pruning import Plan


@dataclass(frozen=True)
class Entry:
    """A finished plan: its accuracy on the reward images, its cost as fractions of the unpruned network's, and the
    return of its episode."""

    plan: Plan
    accuracy: float
    macs_ratio: float
    params_ratio: float
    episode_return: float


class Archive:
    """Distinct plans in the order of their first evaluation."""

    def __init__(self) -> None:
        self._entries: dict[Plan, Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def add(self, entry: Entry) -> None:
        """Keeps the entry; a plan met before keeps its place and the better return."""
        known = self._entries.get(entry.plan)
        if known is None or entry.episode_return > known.episode_return:
            self._entries[entry.plan] = entry

    def best(self, count: int = 1) -> list[Entry]:
        """The `count` plans of the highest return, the best first; equals in order of evaluation.

        With the `budget` reward these are the most accurate ones.
        """
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        return sorted(self._entries.values(), key=lambda entry: -entry.episode_return)[:count]

    def state_dict(self) -> dict[str, Any]:
        """Plain lists and numbers."""
        return {"entries": [[list(e.plan), e.accuracy, e.macs_ratio, e.params_ratio, e.episode_return] for e in self]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replaces the contents."""
        self._entries = {}
        for plan, *numbers in state["entries"]:
            self.add(Entry(tuple(plan), *numbers))
