"""The summary of networks: right numbers, aligned, in at most 110 columns."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prune_env.reporting.summary import CONVENTION, WIDTH, NetworkRow, percent, scale, summary

ORIGINAL = NetworkRow("original", 0.936, 313_201_664, 14_991_946, 60_000_000, 4.0, 150.0)
HALF = NetworkRow("QMIX", 0.9291, 156_600_832, 7_000_000, 30_000_000, 3.0, 75.0, accuracy_before=0.731)
ONNX = {"onnx_bytes": 61_000_000, "onnx_latency_1_ms": 2.0, "onnx_latency_batch_ms": 80.0}
INT8 = {"int8_accuracy": 0.93, "int8_bytes": 15_250_000, "int8_latency_1_ms": 1.0, "int8_latency_batch_ms": 20.0}


def columns(line: str) -> list[str]:
    return re.split(" {2,}", line.strip())


def test_known_rows() -> None:
    lines = summary([ORIGINAL, HALF]).split("\n")
    assert lines[0].split() == ["Before", *["Latency,", "ms"] * 2]
    headings = ["Network", "Accuracy", "distil.", "MACs, M", "Params, M", "File, MiB", "batch 1", "batch 100"]
    assert columns(lines[1]) == headings
    assert columns(lines[3]) == ["original", "93.60 %", "-", "313.2", "14.99", "57.22", "4.00", "150.0"]
    assert columns(lines[4])[:3] == ["QMIX", "92.91 %", "73.10 %"]
    assert columns(lines[4])[3:6] == ["156.6 (50.0 %)", "7.00 (46.7 %)", "28.61 (50.0 %)"]
    assert columns(lines[4])[6:] == ["3.00 (75 %)", "75.0 (50 %)"]
    assert CONVENTION in lines
    # Every number stands below the number of the original.
    for first, second in (("313.2", "156.6"), ("14.99", " 7.00"), ("57.22", "28.61"), ("150.0", " 75.0")):
        assert lines[3].index(first) == lines[4].index(second)


def test_units_suit_the_original() -> None:
    small = replace(ORIGINAL, macs=40_551_040, params=272_474, file_bytes=1_000_000)
    header, _, first, second = summary([small, replace(small, params=2_725, file_bytes=10_000)]).split("\n")[1:5]
    assert ("MACs, M" in header, "Params, k" in header, "File, KiB" in header) == (True, True, True)
    assert first.split()[3:6] == ["40.55", "272.5", "976.6"]
    assert "2.7  (1.0 %)" in second or "2.7 (1.0 %)" in second
    assert re.search(r" MACs +Params +File, KiB ", summary([replace(small, macs=999, params=1)]))
    assert "Before" not in summary([small]), "no row has an accuracy before distillation"


def test_onnx_files_have_a_block_of_their_own() -> None:
    unmeasured = replace(HALF, name="uniform, round-to 1", accuracy=None, **{name: x / 2 for name, x in ONNX.items()})
    text = summary([replace(ORIGINAL, **ONNX), unmeasured])
    first, second, notes = text.split("\n\n")
    assert columns(first.split("\n")[1]) == ["Network", "Accuracy", "distil.", "MACs, M", "Params, M"]
    assert columns(first.split("\n")[4])[:3] == ["uniform, round-to 1", "-", "73.10 %"]
    heads, names, _, original, other = map(columns, second.split("\n"))
    assert heads == ["File, MiB", "File, MiB", "torch, ms", "torch, ms", "ONNX, ms", "ONNX, ms"]
    assert names == ["Network", "weights", "ONNX", *["batch 1", "batch 100"] * 2]
    assert original == ["original", "57.22", "58.17", "4.00", "150.0", "2.00", "80.00"]
    assert other[2:] == ["29.09 (50.0 %)", "3.00 (75 %)", "75.0 (50 %)", "1.00 (50 %)", "40.00 (50 %)"]
    assert "ONNX by onnxruntime" in notes


def test_int8_files_are_compared_with_the_float_file_of_the_original() -> None:
    original = replace(ORIGINAL, **ONNX, **INT8)
    unmeasured = replace(original, name="half", int8_accuracy=None, int8_bytes=6_100_000, int8_latency_1_ms=0.5)
    *_, third, notes = summary([original, unmeasured]).split("\n\n")
    heads, names, _, first, second = map(columns, third.split("\n"))
    assert heads == ["int8", "File, MiB", "int8, ms", "int8, ms"]
    assert names == ["Network", "Accuracy", "int8", "batch 1", "batch 100"]
    assert first == ["original", "93.00 %", "14.54 (25.0 %)", "1.00 (50 %)", "20.00 (25 %)"]
    assert second == ["half", "-", "5.82 (10.0 %)", "0.50 (25 %)", "20.00 (25 %)"]
    assert "int8" in notes
    assert "int8" not in summary([original, replace(ORIGINAL, **ONNX)]), "not every network has an int8 file"


def test_onnx_files_are_not_shown_unless_every_network_has_one() -> None:
    assert "ONNX" not in summary([replace(ORIGINAL, **ONNX), HALF])
    assert summary([ORIGINAL, replace(HALF, **ONNX)]) == summary([ORIGINAL, HALF])


rows = st.builds(
    NetworkRow,
    name=st.text("abc -_", min_size=1, max_size=60),
    accuracy=st.none() | st.floats(0, 1),
    macs=st.integers(1, 10**11),
    params=st.integers(1, 10**9),
    file_bytes=st.integers(1, 10**9),
    latency_1_ms=st.floats(0.01, 1e3),
    latency_batch_ms=st.floats(0.01, 1e4),
    accuracy_before=st.none() | st.floats(0, 1),
    onnx_bytes=st.none() | st.integers(1, 10**9),
    onnx_latency_1_ms=st.floats(0.01, 1e3),
    onnx_latency_batch_ms=st.floats(0.01, 1e4),
    int8_accuracy=st.none() | st.floats(0, 1),
    int8_bytes=st.none() | st.integers(1, 10**9),
    int8_latency_1_ms=st.floats(0.01, 1e3),
    int8_latency_batch_ms=st.floats(0.01, 1e4),
)


@settings(deadline=None)
@given(rows, st.lists(st.tuples(st.text("abc ", min_size=1, max_size=50), st.floats(0.05, 1)), max_size=4))
def test_it_fits_and_shows_every_name(original: NetworkRow, others: list[tuple[str, float]]) -> None:
    networks = [original] + [
        replace(
            original, name=name, macs=max(1, int(original.macs * ratio)), latency_1_ms=original.latency_1_ms * ratio
        )
        for name, ratio in others
    ]
    text = summary(networks)
    assert max(map(len, text.split("\n"))) <= WIDTH
    *blocks, _ = text.split("\n\n")
    onnx, int8 = original.onnx_bytes is not None, original.int8_bytes is not None
    assert len(blocks) == 1 + onnx + (onnx and int8)
    for number, block in enumerate(blocks):
        body = block.split("\n")
        rule = len(body[2])
        assert body[2] == "-" * rule
        ratios = len(others) + (number == 2)  # only in the third block the original has one
        assert sum(len(line) == rule for line in body[3:]) == max(1, ratios), "ratios end at the right edge"
        assert all(word[:8] in block for row in networks for word in row.name.split())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("accuracy", 93.6),
        ("accuracy_before", -0.1),
        ("macs", 0),
        ("file_bytes", -1),
        ("latency_1_ms", math.nan),
        ("onnx_bytes", 0),
        ("onnx_latency_batch_ms", math.inf),
        ("int8_accuracy", 93.6),
        ("int8_latency_1_ms", 0),
    ],
)
def test_wrong_values_are_named(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field} of 'original'"):
        replace(ORIGINAL, **{field: value})


def test_there_must_be_a_network() -> None:
    with pytest.raises(ValueError, match="rows"):
        summary([])


@pytest.mark.parametrize(
    ("largest", "unit", "divisor"),
    [(999, "", 1), (1000, ", k", 1e3), (2.5e6, ", M", 1e6), (3e12, ", G", 1e9)],
)
def test_units(largest: float, unit: str, divisor: float) -> None:
    assert scale(largest) == (unit, divisor)


def test_percentages_are_rounded() -> None:
    assert (percent(0.12345, 1), percent(0.5, 0)) == ("12.3 %", "50 %")
