"""What a search found."""

from __future__ import annotations

from dataclasses import dataclass

from prune_env.archive import Entry


@dataclass(frozen=True)
class SearchResult:
    """Distinct plans in the order of their evaluation, all within the budget of MACs, and the time it took."""

    entries: tuple[Entry, ...]
    seconds: float

    @property
    def curve(self) -> list[float]:
        """Best accuracy after each evaluation."""
        best, curve = 0.0, []
        for entry in self.entries:
            best = max(best, entry.accuracy)
            curve.append(best)
        return curve
