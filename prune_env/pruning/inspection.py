"""What can be pruned in a network, what cannot and why, and how well that is proven."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from .cost import Cost
from .groups import NOTHING, Protected, PruningGroup, groups_and_protected, tell
from .proof import JOINT, proven_and_failed
from .trace import Example


@dataclass(frozen=True)
class Inspection:
    """The groups of a network that can be trusted; `str` gives a table.

    groups        what can go, in forward order; proven, if a proof was asked for
    protected     what stays, and why
    differences   agent id -> relative difference between cut and switched off; 'joint' for all together; None without
                  a proof
    macs_shares   each group's share of the network's MACs: those of the layers that lose its filters
    removable     the largest fraction of the MACs that can go: one filter of every group stays
    """

    groups: tuple[PruningGroup, ...]
    protected: tuple[Protected, ...]
    differences: dict[str, float] | None
    macs_shares: tuple[float, ...]
    removable: float

    def __str__(self) -> str:
        protected = [f"protected  {_short(e.layers)} ({e.filters} filters): {e.reason}" for e in self.protected]
        if not self.groups:
            return "\n".join([*protected, NOTHING if protected else f"{NOTHING}; it has no convolution"])
        rows: list[Sequence[str]] = [("agent", "layers", "filters", "MACs %", "difference")]
        for group, share in zip(self.groups, self.macs_shares, strict=True):
            proof = "not proven" if self.differences is None else f"{self.differences[group.name]:.1e}"
            rows.append((group.name, _short(group.layers), str(group.filters), f"{100 * share:.1f}", proof))
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines += protected
        joint = "" if not self.differences else f", largest difference of all together {self.differences[JOINT]:.1e}"
        lines.append(f"{len(self.groups)} agents; at most {100 * self.removable:.1f} % of the MACs can go{joint}")
        return "\n".join(lines)


def inspect(model: nn.Module, example_input: Example, *, prove: bool = True, progress: bool = True) -> Inspection:
    """Finds the groups, proves each and all together on the example, and counts what they cost.

    example_input  float [B, C_in, H, W], or a sequence of tensors for a network that takes several
    progress       where it takes longer than five seconds, stderr shows what is being done
    The model is not changed. Raises PruningError where it cannot be copied, traced or run.
    """
    groups, protected = groups_and_protected(model, example_input, progress=progress)
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


def trusted(model: nn.Module, example_input: Example, *, prove: bool = True) -> Inspection:
    """`inspect`, with a warning for everything that is protected; raises PruningError where nothing can be pruned."""
    inspection = inspect(model, example_input, prove=prove)
    tell(inspection.groups, inspection.protected)
    return inspection


def _short(layers: Sequence[str], most: int = 3) -> str:
    """The first paths, and how many more there are."""
    more = len(layers) - most
    return ", ".join(layers[:most]) + (f" and {more} more" if more > 0 else "")
