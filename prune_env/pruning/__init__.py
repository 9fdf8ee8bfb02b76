"""Find what can be pruned in a network, rank it, cut it, and count what that saves.

modules     how each type of module is handled; register your own layers
groups      pruning groups and plans
rules       what each operation does to labels; register rules for your own operations
tracing     one forward pass in which every tensor has labels (labels, trace)
grouping    which filters can only be removed together: the pruning groups
importance  which filters of a group matter; register your own scores
surgery     from a plan to a smaller network (copies)
cost        MACs and parameters of a plan, without building it
proof       cutting filters equals masking them
inspection  everything that is known about a network before it is pruned
problem     a network, its data, its groups and their ranking
"""

from . import importance
from .cost import Cost
from .errors import PruningError
from .grouping import find_groups
from .groups import Member, Plan, Protected, PruningGroup, check_plan
from .importance import register_importance
from .inspection import Inspection, inspect
from .modules import ModuleSpec, channels, register_module
from .proof import masked, prove
from .surgery import build, build_from_indices, kept_indices, removed_channels, restrict

__all__ = [
    "Cost",
    "Inspection",
    "Member",
    "ModuleSpec",
    "Plan",
    "Protected",
    "PruningError",
    "PruningGroup",
    "build",
    "build_from_indices",
    "channels",
    "check_plan",
    "find_groups",
    "importance",
    "inspect",
    "kept_indices",
    "masked",
    "prove",
    "register_importance",
    "register_module",
    "removed_channels",
    "restrict",
]
