"""What can be pruned in a network, what cannot and why, and how well that is proven."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import nn

from ..common.expect import expect_fields
from ..common.outputs import all_outputs
from .copies import uncompiled
from .cost import Cost
from .forward import Example
from .grouping import NOTHING_TO_PRUNE, groups_and_protected, require_groups, warn_protected
from .groups import Protected, PruningGroup, named
from .limits import Limits
from .patterns import LayersConfig, chosen_and_excluded
from .proof import JOINT, proven_and_failed


@dataclass(frozen=True)
class Inspection:
    """The pruning groups of a network, and its protected filters; printed as a table."""

    groups: tuple[PruningGroup, ...]
    """What can be pruned, in forward order. With a proof, only the groups for which it succeeded."""
    protected: tuple[Protected, ...]
    """What is not pruned, and why."""
    differences: dict[str, float] | None
    """Name of a group -> relative difference between cutting and masking its filters; 'joint' for all groups together.
    None without a proof."""
    macs_shares: tuple[float, ...]
    """Share of the network's MACs in the layers of each group."""
    removable: float
    """Largest fraction of the MACs that can be removed, when every group keeps as few filters as it may."""
    limits: Limits = field(default_factory=Limits)
    """What must stay of each group; by default one filter."""

    def warn_protected(self) -> None:
        """Warn of all layers that cannot be pruned, but not of those that settings exclude."""
        warn_protected(self.protected)

    def require_groups(self) -> None:
        """Check that the network has something to prune.

        Raises:
            PruningError: It has no group; the message names the protected layers.
        """
        require_groups(self.groups, self.protected)

    def limited(self, limits: Limits, cost: Cost) -> Inspection:
        """Return the same inspection with limits of the groups.

        Args:
            limits: What must stay of each group.
            cost: The cost of the network's plans.
        """
        full = tuple(group.filters for group in self.groups)
        removable = 1 - cost.macs(tuple(limits.fewest(full).tolist())) / cost.macs(full)
        return replace(self, limits=limits, removable=removable)

    def __str__(self) -> str:
        protected = [f"protected  {_short(e.layers)} ({e.filters} filters): {e.reason}" for e in self.protected]
        if not self.groups:
            return "\n".join([*protected, NOTHING_TO_PRUNE if protected else f"{NOTHING_TO_PRUNE}; it has none"])
        rows: list[Sequence[str]] = [("group", "layers", "filters", "keeps at least", "MACs %", "difference")]
        keeps = self._keeps()
        for group, least, share in zip(self.groups, keeps, self.macs_shares, strict=True):
            proof = "not proven" if self.differences is None else f"{self.differences[group.name]:.1e}"
            rows.append((group.name, _short(group.layers), str(group.filters), least, f"{100 * share:.1f}", proof))
        widths = [max(len(row[column]) for row in rows) for column in range(6)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines += protected
        joint = "" if not self.differences else f", largest difference of all together {self.differences[JOINT]:.1e}"
        lines.append(
            f"{len(self.groups)} groups; at most {100 * self.removable:.1f} % of the MACs can be removed{joint}"
        )
        return "\n".join(lines)

    def _keeps(self) -> list[str]:
        """Return the fewest filters of each group, and the multiple that its counts are rounded up to."""
        fewest = self.limits.fewest([group.filters for group in self.groups])
        multiples = np.broadcast_to(self.limits.round_to, fewest.shape)
        return [
            f"{least}, multiples of {of}" if of > 1 else str(least) for least, of in zip(fewest, multiples, strict=True)
        ]


def inspect(
    model: nn.Module,
    example_input: Example,
    *,
    prove: bool = True,
    progress: bool = True,
    **layers: Any,
) -> Inspection:
    """Find the pruning groups of a network, prove that they can be cut, and count what they cost.

    Args:
        model: The network, which does not change. All its outputs are compared, also with a chosen one (`one_output`).
        example_input: float [B, C_in, H, W], or a sequence of tensors for a network with several inputs.
        prove: Whether to check for every group, and for all together, that cutting its filters equals masking them.
        progress: Whether to show a progress bar on stderr if it takes longer than five seconds.
        **layers: Fields of `LayersConfig`: `exclude`, `only` and `linear`.

    Returns:
        The report; its `groups` are empty if nothing can be pruned.

    Raises:
        PruningError: The network cannot be copied, traced or run.
        TypeError: A further argument is no field of `LayersConfig`.
        ValueError: A pattern matches no layer that can be pruned; the message lists the layers.

    Example:
        >>> print(inspect(model, torch.zeros(2, 3, 32, 32)))
    """
    expect_fields(layers, "inspect", LayersConfig)
    chosen = LayersConfig(**layers)
    model = all_outputs(model)
    groups, protected = groups_and_protected(model, example_input, linear=chosen.linear, progress=progress)
    groups, excluded = chosen_and_excluded(groups, chosen)
    protected += excluded
    model = uncompiled(model)
    differences = None
    if prove:
        groups, failed, differences = proven_and_failed(model, groups, example_input, progress=progress)
        protected += failed
    cost = Cost(model, groups, example_input)
    full = tuple(group.filters for group in groups)
    macs = dict(zip(cost.layers, cost.layer_macs(full) / cost.macs(full), strict=True))
    shares = tuple(float(sum(macs[layer] for layer in group.layers)) for group in groups)
    removable = 1 - cost.macs((1,) * len(groups)) / cost.macs(full)
    return Inspection(tuple(groups), tuple(protected), differences, shares, removable)


def _short(layers: Sequence[str], most: int = 3) -> str:
    """The first paths, and how many more there are."""
    more = len(layers) - most
    return ", ".join(map(named, layers[:most])) + (f" and {more} more" if more > 0 else "")
