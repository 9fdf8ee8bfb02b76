"""What can be pruned, what should go first, how it goes, and what that saves.

trace       one forward pass in which every tensor knows its filters (labels, rules)
groups      which filters must go together: one group, one agent
importance  which filters of a group matter
surgery     from a plan to a really smaller network
cost        MACs and parameters of a plan, without building it
proof       cutting filters out equals switching them off
inspection  all that can be said of a network before it is pruned
"""

from . import importance
from .copies import PruningError
from .cost import Cost
from .groups import Member, Plan, Protected, PruningGroup, find_groups
from .inspection import Inspection, inspect, trusted
from .proof import masked, prove
from .surgery import build, build_from_indices, kept_indices, restrict

__all__ = [
    "Cost",
    "Inspection",
    "Member",
    "Plan",
    "Protected",
    "PruningError",
    "PruningGroup",
    "build",
    "build_from_indices",
    "find_groups",
    "importance",
    "inspect",
    "kept_indices",
    "masked",
    "prove",
    "restrict",
    "trusted",
]
