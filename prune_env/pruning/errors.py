"""The error that the pruning library raises."""

from __future__ import annotations


class PruningError(ValueError):
    """The network cannot be copied, traced, cut or counted."""
