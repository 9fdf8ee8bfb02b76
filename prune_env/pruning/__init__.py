"""What can be pruned, what should go first, how it goes, and what that saves.

groups      which filters must go together: one group, one agent
importance  which filters of a group matter
surgery     from a plan to a really smaller network
cost        MACs and parameters of a plan, without building it
proof       cutting filters out equals switching them off
"""

from . import importance
from .cost import Cost
from .groups import Member, Plan, PruningGroup, find_groups
from .proof import prove, proven_groups, switched_off
from .surgery import PruningError, build, build_from_indices, kept_indices, restrict

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
    "switched_off",
]
