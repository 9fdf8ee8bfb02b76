"""Get networks by name."""

from .registry import NETWORKS, create

__all__ = ["NETWORKS", "create"]
