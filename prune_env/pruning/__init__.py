"""What can be pruned, in which order, what it costs, and the cut itself."""

from . import importance
from .cost import Cost
from .groups import Member, Plan, PruningError, PruningGroup, find_groups
from .proof import prove, proven_groups
from .surgery import build, build_from_indices, kept_indices, restrict

__all__ = [
    "Cost",
    "Member",
    "Plan",
    "PruningError",
    "PruningGroup",
    "build",
    "build_from_indices",
    "find_groups",
    "importance",
    "kept_indices",
    "prove",
    "proven_groups",
    "restrict",
]
