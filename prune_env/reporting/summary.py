"""The summary of networks that a run ends with: accuracies, costs, file sizes and latencies as plain text."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH = 110
"""Columns of text that a summary may take."""
CONVENTION = "MACs: multiply-accumulates of convolution and linear layers, one input; FLOPs = 2 x MACs."
SLOWER = 1.05
"""Print a hint on odd filter counts if a pruned network's ONNX latency exceeds the original's by this factor."""

Column = list[str]
"""Two cells of heading, then one cell per network."""


@dataclass(frozen=True)
class NetworkRow:
    """One network of a summary.

    Raises:
        ValueError: A field has a value that is not allowed; the message names the field.
    """

    name: str
    accuracy: float | None
    """Fraction of the test images; None if it was not measured."""
    macs: int
    params: int
    file_bytes: int
    """Size of the file of weights."""
    latency_1_ms: float
    """Median latency at batch size 1."""
    latency_100_ms: float
    """Median latency at batch size 100."""
    short_accuracy: float | None = None
    """Accuracy before distillation; None if there was none."""
    onnx_bytes: int | None = None
    """Size of the ONNX file; None if there is none."""
    onnx_latency_1_ms: float | None = None
    """Median latency in onnxruntime at batch size 1."""
    onnx_latency_100_ms: float | None = None
    """Median latency in onnxruntime at batch size 100."""

    def __post_init__(self) -> None:
        for name in ("accuracy", "short_accuracy"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} of {self.name!r} must be a fraction between 0 and 1, got {value}")
        optional = ("onnx_bytes", "onnx_latency_1_ms", "onnx_latency_100_ms")
        for name in ("macs", "params", "file_bytes", "latency_1_ms", "latency_100_ms", *optional):
            value = getattr(self, name)
            if not (value is None and name in optional) and not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} of {self.name!r} must be above 0 and finite, got {value}")


def summary(rows: Sequence[NetworkRow]) -> str:
    """Return the networks as aligned plain text of at most 110 columns.

    All numbers of a column have the unit that suits the original network. If every network was measured as ONNX, file
    sizes and latencies stand in a second block.

    Args:
        rows: The networks. The first one is the original, to which ratios refer.

    Raises:
        ValueError: There are no rows.
    """
    if not rows:
        raise ValueError("rows must have at least one network, the original first; got none")
    costs, deployment = _costs(rows), _deployment(rows)
    notes = [CONVENTION, "In parentheses: share of the original. Latency: median forward pass."]
    onnx = _onnx_deployment(rows)
    if onnx is None:
        blocks = [costs + deployment]
    else:
        blocks = [costs, onnx]
        notes[1] = "In parentheses: share of the original. Latency: median forward pass; ONNX by onnxruntime."
        latencies = [row.onnx_latency_100_ms or 0.0 for row in rows]
        if max(latencies) > SLOWER * latencies[0]:
            notes.append(
                "A network with fewer MACs is slower: odd filter counts can cause that; --round-to 8 avoids them."
            )
    names = [row.name for row in rows]
    return "\n\n".join([*(_block(names, block) for block in blocks), "\n".join(notes)])


def scale(largest: float) -> tuple[str, float]:
    """Return a unit and its divisor, so that `largest` is at least 1 in that unit.

    Returns:
        The unit as the end of a heading, such as ", M", and the divisor, such as 1e6.
    """
    for unit, divisor in ((", G", 1e9), (", M", 1e6), (", k", 1e3)):
        if largest >= divisor:
            return unit, divisor
    return "", 1.0


def percent(fraction: float, decimals: int) -> str:
    """Return a fraction in percent."""
    return f"{100 * fraction:.{decimals}f} %"


def _costs(rows: Sequence[NetworkRow]) -> list[Column]:
    """Return the columns of accuracies, MACs and parameters."""
    macs_unit, macs = scale(rows[0].macs)
    params_unit, params = scale(rows[0].params)
    columns = [["", "Accuracy", *_percents([row.accuracy for row in rows])]]
    if any(row.short_accuracy is not None for row in rows):
        columns.append(["Before", "distil.", *_percents([row.short_accuracy for row in rows])])
    return [
        *columns,
        ["", f"MACs{macs_unit}", *_with_ratios([row.macs / macs for row in rows], 1)],
        ["", f"Params{params_unit}", *_with_ratios([row.params / params for row in rows], 1)],
    ]


def _deployment(rows: Sequence[NetworkRow]) -> list[Column]:
    """Return the columns of file sizes and latencies in torch."""
    unit, size = _file_unit(rows)
    return [
        ["", f"File, {unit}", *_with_ratios([row.file_bytes / size for row in rows], 1)],
        ["Latency, ms", "batch 1", *_with_ratios([row.latency_1_ms for row in rows], 0)],
        ["Latency, ms", "batch 100", *_with_ratios([row.latency_100_ms for row in rows], 0)],
    ]


def _onnx_deployment(rows: Sequence[NetworkRow]) -> list[Column] | None:
    """Return the columns of file sizes and latencies in torch and onnxruntime, None if one is missing."""
    unit, size = _file_unit(rows)
    onnx = [
        [value for row in rows if (value := getattr(row, name)) is not None]
        for name in ("onnx_bytes", "onnx_latency_1_ms", "onnx_latency_100_ms")
    ]
    if any(len(values) < len(rows) for values in onnx):
        return None
    (_, _, *files), (_, _, *at_1), (_, _, *at_100) = _deployment(rows)
    return [
        [f"File, {unit}", "weights", *files],
        [f"File, {unit}", "ONNX", *_with_ratios([value / size for value in onnx[0]], 1)],
        ["torch, ms", "batch 1", *at_1],
        ["torch, ms", "batch 100", *at_100],
        ["ONNX, ms", "batch 1", *_with_ratios(onnx[1], 0)],
        ["ONNX, ms", "batch 100", *_with_ratios(onnx[2], 0)],
    ]


def _file_unit(rows: Sequence[NetworkRow]) -> tuple[str, int]:
    return ("MiB", 2**20) if rows[0].file_bytes >= 2**20 else ("KiB", 2**10)


def _block(names: Sequence[str], columns: Sequence[Column]) -> str:
    """Return the names of the networks, next to them the columns, under a heading and a rule."""
    widths = [max(map(len, column)) for column in columns]
    left = max(8, WIDTH - sum(widths) - 2 * len(widths))
    wrapped = [_lines(name, left) for name in names]
    left = max(len(line) for lines in (*wrapped, ["Network"]) for line in lines)
    lines = []
    for number, (name, *rest) in enumerate([[""], ["Network"], *wrapped]):
        cells = [column[number].rjust(width) for column, width in zip(columns, widths, strict=True)]
        lines += ["  ".join((name.ljust(left), *cells)).rstrip(), *rest]
    lines.insert(2, "-" * (left + sum(widths) + 2 * len(widths)))
    return "\n".join(lines)


def _lines(name: str, width: int) -> list[str]:
    """Wrap a name into lines of at most `width` characters, and cut longer words."""
    words = [word[start : start + width] for word in name.split() for start in range(0, len(word), width)]
    return textwrap.wrap(" ".join(words), width, break_on_hyphens=False) or [""]


def _with_ratios(values: Sequence[float], decimals: int) -> list[str]:
    """Format numbers with one precision, and all but the first with their ratio to the first."""
    digits = 1 if values[0] >= 100 else 2
    ratios = [f"({percent(value / values[0], decimals)})" for value in values[1:]]
    width = max((len(ratio) for ratio in ratios), default=-1)
    cells = zip(values, ["", *ratios], strict=True)
    return [f"{value:.{digits}f}" + ratio.rjust(1 + width) for value, ratio in cells]


def _percents(fractions: Sequence[float | None]) -> list[str]:
    return ["-" if fraction is None else percent(fraction, 2) for fraction in fractions]
