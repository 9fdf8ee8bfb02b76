"""What a search found."""

from __future__ import annotations

from dataclasses import dataclass

from prune_env.game.archive import Entry


@dataclass(frozen=True)
class SearchResult:
    """Distinct plans within the budget of MACs in the order of their evaluation, and what finding them took."""

    entries: tuple[Entry, ...]
    evaluations: tuple[float | None, ...]
    """Accuracy of every distinct plan that was evaluated, in that order; None for a plan above the budget of MACs,
    which is paid for but cannot win."""
    proposals: int
    """Plans asked for, repeats included."""
    seconds: float

    @property
    def curve(self) -> list[float]:
        """Best accuracy after each evaluation; 0 until a plan meets the budget of MACs."""
        best, curve = 0.0, []
        for accuracy in self.evaluations:
            best = max(best, accuracy or 0.0)
            curve.append(best)
        return curve

    def best(self, count: int = 1) -> list[Entry]:
        """The most accurate plans, the best first; equals in order of evaluation."""
        return sorted(self.entries, key=lambda entry: -entry.accuracy)[:count]
