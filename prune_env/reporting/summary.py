"""The final summary of a run: a table of its networks as plain text."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH = 110
"""Maximum width of the table, in characters."""
CONVENTION = "MACs: multiply-accumulates of convolution and linear layers, one input; FLOPs = 2 x MACs."

ONNX, INT8 = ((f"{kind}_bytes", f"{kind}_latency_1_ms", f"{kind}_latency_batch_ms") for kind in ("onnx", "int8"))
"""Names of the fields of a float and of an int8 ONNX file."""


@dataclass(frozen=True)
class NetworkRow:
    """One network of the table.

    Raises:
        ValueError: A number is out of range; the message names the field.
    """

    name: str
    accuracy: float | None
    """Test accuracy as a fraction; None if it was not measured."""
    macs: int
    """Multiply-accumulates for one input."""
    params: int
    """Number of parameters."""
    file_bytes: int
    """Size of the file of weights, in bytes."""
    latency_1_ms: float
    """Median latency at batch size 1, in milliseconds."""
    latency_batch_ms: float
    """Median latency at the larger batch size, in milliseconds."""
    batch_size: int = 100
    """The larger batch size, in images."""
    accuracy_before: float | None = None
    """Test accuracy before distillation, as a fraction; None if there is none."""
    onnx_bytes: int | None = None
    """Size of the ONNX file, in bytes; None if there is no file."""
    onnx_latency_1_ms: float | None = None
    """Median latency of onnxruntime at batch size 1, in milliseconds."""
    onnx_latency_batch_ms: float | None = None
    """Median latency of onnxruntime at the larger batch size, in milliseconds."""
    int8_accuracy: float | None = None
    """Test accuracy of the int8 ONNX file, as a fraction; None if it was not measured."""
    int8_bytes: int | None = None
    """Size of the int8 ONNX file, in bytes; None if there is no file."""
    int8_latency_1_ms: float | None = None
    """Median latency of the int8 file at batch size 1, in milliseconds."""
    int8_latency_batch_ms: float | None = None
    """Median latency of the int8 file at the larger batch size, in milliseconds."""

    def __post_init__(self) -> None:
        for name in ("accuracy", "accuracy_before", "int8_accuracy"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} of {self.name!r} must be a fraction between 0 and 1, got {value}")
        for name in ("macs", "params", "file_bytes", "latency_1_ms", "latency_batch_ms", *ONNX, *INT8):
            value = getattr(self, name)
            if not (value is None and name in (*ONNX, *INT8)) and not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} of {self.name!r} must be above 0 and finite, got {value}")


def summary(rows: Sequence[NetworkRow]) -> str:
    """Return a table of the networks as aligned plain text, at most 110 characters wide.

    All numbers of a column have the same unit, chosen for the original network. If every row has ONNX values, files and
    latencies form a second block, and if every row has int8 values, these form a third one.

    Args:
        rows: The networks. The first one is the original network, to which all ratios refer.

    Raises:
        ValueError: There are no rows.
    """
    if not rows:
        raise ValueError("rows must have at least one NetworkRow, the original network first; got none")
    original = rows[0]
    many = f"batch {original.batch_size}"
    macs_unit, macs = scale(original.macs)
    params_unit, params = scale(original.params)
    file_unit, size = ("MiB", 2**20) if original.file_bytes >= 2**20 else ("KiB", 2**10)
    columns = [["", "Accuracy", *_percents([row.accuracy for row in rows])]]
    if any(row.accuracy_before is not None for row in rows):
        columns.append(["Before", "distil.", *_percents([row.accuracy_before for row in rows])])
    columns += [
        ["", f"MACs{macs_unit}", *_with_ratios([row.macs / macs for row in rows], 1)],
        ["", f"Params{params_unit}", *_with_ratios([row.params / params for row in rows], 1)],
    ]
    files = _with_ratios([row.file_bytes / size for row in rows], 1)
    latencies = [_with_ratios([getattr(row, f"latency_{batch}_ms") for row in rows], 0) for batch in ("1", "batch")]
    onnx, int8 = (
        [[value for row in rows if (value := getattr(row, name)) is not None] for name in names]
        for names in (ONNX, INT8)
    )
    notes = [CONVENTION, "In parentheses: share of the original. Latency: median forward pass."]
    if any(len(values) < len(rows) for values in onnx):
        columns += [
            ["", f"File, {file_unit}", *files],
            ["Latency, ms", "batch 1", *latencies[0]],
            ["Latency, ms", many, *latencies[1]],
        ]
        blocks = [columns]
    else:
        deployment = [
            [f"File, {file_unit}", "weights", *files],
            [f"File, {file_unit}", "ONNX", *_with_ratios([value / size for value in onnx[0]], 1)],
            ["torch, ms", "batch 1", *latencies[0]],
            ["torch, ms", many, *latencies[1]],
            ["ONNX, ms", "batch 1", *_with_ratios(onnx[1], 0)],
            ["ONNX, ms", many, *_with_ratios(onnx[2], 0)],
        ]
        blocks = [columns, deployment]
        notes[1] = "In parentheses: share of the original. Latency: median forward pass; ONNX by onnxruntime."
        if all(len(values) == len(rows) for values in int8):
            file, at_1, at_100 = (values[0] for values in onnx)
            blocks.append(
                [
                    ["int8", "Accuracy", *_percents([row.int8_accuracy for row in rows])],
                    [f"File, {file_unit}", "int8", *_with_ratios([value / size for value in int8[0]], 1, file / size)],
                    ["int8, ms", "batch 1", *_with_ratios(int8[1], 0, at_1)],
                    ["int8, ms", many, *_with_ratios(int8[2], 0, at_100)],
                ]
            )
            notes.append("int8: share of the original network's float ONNX file; accuracy is that of onnxruntime.")
    names = [row.name for row in rows]
    return "\n\n".join([*(_block(names, block) for block in blocks), "\n".join(notes)])


def _block(names: Sequence[str], columns: Sequence[Sequence[str]]) -> str:
    """Return a block of the table: the names, then the columns. The first two cells of a column are its heading."""
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
    """Return a name as lines of at most `width` characters. Longer words are split."""
    words = [word[start : start + width] for word in name.split() for start in range(0, len(word), width)]
    return textwrap.wrap(" ".join(words), width, break_on_hyphens=False) or [""]


def _with_ratios(values: Sequence[float], decimals: int, reference: float | None = None) -> list[str]:
    """Return the numbers with the same precision and their ratios to a reference.

    Without a reference that is the first number, which then has no ratio.
    """
    digits = 1 if values[0] >= 100 else 2
    ratios = [f"({percent(value / (reference or values[0]), decimals)})" for value in values]
    if reference is None:
        ratios[0] = ""
    width = max(map(len, ratios)) or -1
    return [f"{value:.{digits}f}" + ratio.rjust(1 + width) for value, ratio in zip(values, ratios, strict=True)]


def _percents(fractions: Sequence[float | None]) -> list[str]:
    return ["-" if fraction is None else percent(fraction, 2) for fraction in fractions]


def scale(largest: float) -> tuple[str, float]:
    """Choose the unit in which a number is at least 1.

    Args:
        largest: The number, or the largest of several.

    Returns:
        The unit as the end of a heading, such as ", M" (empty below 1000), and the divisor of that unit.
    """
    for unit, divisor in ((", G", 1e9), (", M", 1e6), (", k", 1e3)):
        if largest >= divisor:
            return unit, divisor
    return "", 1.0


def percent(fraction: float, decimals: int) -> str:
    """Return a fraction as text in percent, with that number of decimals."""
    return f"{100 * fraction:.{decimals}f} %"
