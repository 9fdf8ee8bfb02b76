"""The result of a search."""

from __future__ import annotations

from dataclasses import dataclass

from prune_env.game.archive import Entry


@dataclass(frozen=True)
class SearchResult:
    """The plans that a search has found, and the cost of the search."""

    entries: tuple[Entry, ...]
    """Distinct plans within the budget of MACs, in the order of evaluation."""
    evaluations: tuple[float | None, ...]
    """Accuracy of every distinct plan, in the order of evaluation. It is None for a plan above the budget of MACs;
    such a plan counts as an evaluation but cannot win."""
    proposals: int
    """Number of proposed plans, including repeats."""
    seconds: float
    """Wall time of the search."""

    @property
    def curve(self) -> list[float]:
        """The best accuracy after each evaluation; 0 until a plan meets the budget of MACs."""
        best, curve = 0.0, []
        for accuracy in self.evaluations:
            best = max(best, accuracy or 0.0)
            curve.append(best)
        return curve

    def best(self, count: int = 1) -> list[Entry]:
        """Return the most accurate plans, the best first; equal plans are in the order of evaluation."""
        return sorted(self.entries, key=lambda entry: -entry.accuracy)[:count]
