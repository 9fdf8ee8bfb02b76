"""What a budget can limit: multiply-accumulates, parameters, or the latency that a table predicts."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from ..pruning.limits import IntArray
from ..pruning.problem import PruningProblem
from ..scoring.latency_table import LatencyTable

CostName = Literal["macs", "params", "latency"]
"""The costs that a budget can limit."""
UNITS: dict[CostName, str] = {"macs": "MACs", "params": "parameters", "latency": "latency"}
"""The same as words for messages and plots."""


@runtime_checkable
class CostFunction(Protocol):
    """Return the cost of each plan in an integer array [..., G], as int64 [...]. More filters never cost less."""

    def __call__(self, plans: IntArray, /) -> IntArray: ...


def cost_function(name: CostName, problem: PruningProblem, latency_table: Path | None) -> CostFunction:
    """Return the function that computes a cost of plans.

    Args:
        name: The cost.
        problem: The network.
        latency_table: File of the table that predicts latencies; it is read once.

    Raises:
        FileNotFoundError: The table does not exist.
        ValueError: There is no table for a budget of latency, or it does not fit the network.
    """
    if name != "latency":
        return problem.cost.macs if name == "macs" else problem.cost.params
    if latency_table is None:
        raise ValueError(
            "target_latency needs latency_table, a file of measured layers; write one with "
            "prune_env.deploy.layer_times.measure_layer_times(model, groups, images).save(file)"
        )
    return LatencyTable.load(latency_table).predictor(problem.cost, problem.full_plan).nanoseconds
