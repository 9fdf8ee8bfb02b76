"""Predict the latency of every plan from a table of measured layers.

A table holds, for each layer, its time at some numbers of input and output channels. Times between them are
interpolated, and the times of all layers are added up. A table is measured once, on any device that runs the network;
`prune_env.deploy.layer_times` measures one on this machine. Letters: L layers, I and O numbers of channels of a layer's
grid, G groups.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from ..common.files import replacing
from ..common.settings import Count, NotNegative, Positive, Range, Settings
from ..pruning.cost import Cost, Integers
from ..pruning.groups import Plan

NANOSECONDS = 1e6
"""Nanoseconds of a millisecond."""


@dataclass(frozen=True)
class LayerTimes(Settings):
    """Times of one layer on a grid of channel counts.

    Raises:
        ValueError: A field has a value that is not allowed, or the fields do not fit together.
    """

    inputs: tuple[Count, ...]
    """Rising numbers of input channels, [I]. One number for a convolution with groups, whose input channels follow from
    its output channels."""
    outputs: tuple[Count, ...]
    """Rising numbers of output channels, [O]."""
    milliseconds: tuple[tuple[NotNegative, ...], ...]
    """Time of the layer, [I, O]. A time counts at least as much as those of fewer channels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("inputs", "outputs"):
            counts = getattr(self, name)
            if not counts or any(low >= high for low, high in pairwise(counts)):
                raise ValueError(f"{name} must be one or more rising numbers of channels, got {counts}")
        shape = len(self.inputs), len(self.outputs)
        if [len(row) for row in self.milliseconds] != [shape[1]] * shape[0]:
            raise ValueError(f"milliseconds must have {shape[0]} rows of {shape[1]} times, one for each pair of counts")


@dataclass(frozen=True)
class LatencyTable(Settings):
    """Times of all layers of a network, and what turns their sum into the latency of the whole network.

    The latency is `scale` times the sum over layers, plus `rest_ms`; with the defaults, it is the sum.

    Raises:
        ValueError: A field has a value that is not allowed.

    Example:
        >>> table = LatencyTable.load("phone.json")
        >>> table.predictor(problem.cost, problem.full_plan).milliseconds((16, 24, 32))
    """

    layers: Mapping[str, LayerTimes]
    """Path of a convolution or linear layer -> its times."""
    scale: Positive = 1.0
    rest_ms: Annotated[float, Range()] = 0.0
    """Milliseconds. Negative where the sum overestimates the smallest networks."""
    measured_on: str = ""
    """What was measured, in words: device, runtime, batch size, threads."""

    @classmethod
    def load(cls, path: str | Path) -> LatencyTable:
        """Read a table from a JSON file with the fields of this class.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is no table; the message names what is wrong.
        """
        file = Path(path)
        if not file.is_file():
            raise FileNotFoundError(f"latency table {file} does not exist; measure_layer_times makes one")
        try:
            content = json.loads(file.read_text(encoding="utf-8-sig"))
            if not isinstance(content, dict) or not isinstance(content.get("layers"), dict):
                raise ValueError("it must be an object with the entry 'layers', an object as well")
            layers = {path: _layer(path, entry) for path, entry in content.pop("layers").items()}
            return cls(layers, **content)
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{file} is no latency table: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write the table as a JSON file."""
        with replacing(Path(path)) as temporary:
            temporary.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")

    def predictor(self, cost: Cost, full_plan: Plan) -> LatencyPredictor:
        """Return the latencies of a network's plans.

        Args:
            cost: The cost of the network.
            full_plan: Its plan that keeps every filter.

        Raises:
            ValueError: A layer is missing in the table, or has more or fewer channels than the table covers.
        """
        return LatencyPredictor(self, cost, full_plan)


def _layer(path: str, entry: Any) -> LayerTimes:
    try:
        return LayerTimes(**entry)
    except (ValueError, TypeError) as error:
        raise ValueError(f"layer {path!r}: {error}") from error


class LatencyPredictor:
    """Latencies of the plans of one network; see `LatencyTable.predictor`."""

    def __init__(self, table: LatencyTable, cost: Cost, full_plan: Plan) -> None:
        runs = np.flatnonzero(cost.layer_macs(full_plan))  # layers that never run take no time
        layers = [cost.layers[row] for row in runs]
        if missing := [layer for layer in layers if layer not in table.layers]:
            raise ValueError(f"the latency table lacks {len(missing)} layers of the network, such as {missing[0]!r}")
        grids = [table.layers[layer] for layer in layers]
        full_inputs, full_outputs = (counts[runs] for counts in cost.layer_channels(full_plan))
        for layer, grid, inputs, outputs in zip(layers, grids, full_inputs, full_outputs, strict=True):
            for kind, counts, full in (("inputs", grid.inputs, inputs), ("outputs", grid.outputs, outputs)):
                if not counts[0] <= full <= counts[-1]:
                    raise ValueError(
                        f"the latency table covers {counts[0]} to {counts[-1]} {kind} of layer {layer!r}, which has "
                        f"{full}"
                    )
        self._cost, self._runs, self._scale, self._rest = cost, runs, table.scale, table.rest_ms
        size = 1 + max(len(counts) for grid in grids for counts in (grid.inputs, grid.outputs))
        self._inputs = np.stack([_padded(grid.inputs, size) for grid in grids])  # [L, I]
        self._outputs = np.stack([_padded(grid.outputs, size) for grid in grids])  # [L, O]
        self._times = np.stack([_times(grid, size) for grid in grids])  # [L, I, O]
        narrowest, full = (self.milliseconds(plan) for plan in ((1,) * len(full_plan), full_plan))
        if narrowest >= full:
            raise ValueError(
                f"the latency table predicts {full:.4g} ms for the network and no less for the narrowest one; check "
                "scale, rest_ms and the times, or measure it again while nothing else runs"
            )

    def milliseconds(self, plan: Sequence[int]) -> float:
        """Return the latency of a plan."""
        return float(self.nanoseconds(np.asarray(plan, np.int64))) / NANOSECONDS

    def nanoseconds(self, plans: Integers) -> Integers:
        """Return the latency of plans [..., G], int64 [...], at least 1."""
        inputs, outputs = (counts[..., self._runs] for counts in self._cost.layer_channels(plans))  # [..., L]
        layers = np.arange(len(self._runs))
        i, right = _place(self._inputs, inputs)
        j, below = _place(self._outputs, outputs)
        corners = [
            self._times[layers, i + di, j + dj] * (right if di else 1 - right) * (below if dj else 1 - below)
            for di in (0, 1)
            for dj in (0, 1)
        ]
        milliseconds = self._scale * sum(corners).sum(-1) + self._rest
        return np.maximum(1, np.rint(NANOSECONDS * milliseconds)).astype(np.int64)


def _padded(counts: Sequence[int], size: int) -> np.ndarray:
    """Return the counts of a grid, continued to a length above that of any grid."""
    return np.array([*counts, *range(counts[-1] + 1, counts[-1] + 1 + size - len(counts))], np.float64)


def _times(grid: LayerTimes, size: int) -> np.ndarray:
    """Return the times of a grid [size, size]: none falls with more channels, and the last ones continue."""
    times = np.array(grid.milliseconds, np.float64)
    rising = np.maximum.accumulate(np.maximum.accumulate(times, 0), 1)
    return np.pad(rising, [(0, size - length) for length in rising.shape], mode="edge")


def _place(grid: np.ndarray, counts: Integers) -> tuple[np.ndarray, np.ndarray]:
    """Return where counts [..., L] lie in the grids [L, size]: the last place at or below, and the way to the next."""
    place = np.clip((grid <= counts[..., None]).sum(-1) - 1, 0, grid.shape[1] - 2)
    layers = np.arange(len(grid))
    low, high = grid[layers, place], grid[layers, place + 1]
    return place, np.clip((counts - low) / (high - low), 0, 1)
