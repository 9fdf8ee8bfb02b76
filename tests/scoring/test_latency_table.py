"""Latency tables: times between measured widths, and files that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prune_env.pruning import Cost, find_groups
from prune_env.scoring.latency_table import LatencyTable, LayerTimes

FULL = (8, 4)


def network() -> nn.Sequential:
    """Return a network whose layer 0 has 3 inputs and 8 filters, layer 1 is depthwise, and layer 2 has 4 filters."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(4 * 16, 2)
    ).eval()


@pytest.fixture(scope="module")
def cost() -> Cost:
    model, images = network(), torch.zeros(2, 3, 6, 6)
    return Cost(model, find_groups(model, images), images)


def table(**changes: Any) -> LatencyTable:
    """Return a table in which one layer after the other takes 1, 10, 100 and 1000 ms at its full width."""
    layers = {
        "0": LayerTimes((3,), (4, 8), ((0.5, 1.0),)),
        "1": LayerTimes((8,), (4, 8), ((8.0, 10.0),)),
        "2": LayerTimes((4, 8), (2, 4), ((20.0, 40.0), (60.0, 100.0))),
        "4": LayerTimes((32, 64), (2,), ((800.0,), (1000.0,))),
    }
    return LatencyTable(**{"layers": layers, **changes})


@pytest.mark.parametrize(
    ("plan", "milliseconds"),
    [
        (FULL, 1 + 10 + 100 + 1000),
        ((4, 2), 0.5 + 8 + 20 + 800),
        ((6, 2), 0.75 + 9 + 40 + 800),  # half-way between 20 and 60
        ((6, 3), 0.75 + 9 + (20 + 40 + 60 + 100) / 4 + 900),
        ((1, 1), 0.5 + 8 + 20 + 800),  # below the grid: the time of its narrowest layer
    ],
)
def test_times_are_interpolated_and_added_up(cost: Cost, plan: tuple[int, ...], milliseconds: float) -> None:
    assert table().predictor(cost, FULL).milliseconds(plan) == pytest.approx(milliseconds)


def test_the_line_turns_the_sum_into_the_latency(cost: Cost) -> None:
    predictor = table(scale=2.0, rest_ms=-22.0).predictor(cost, FULL)
    assert predictor.milliseconds(FULL) == pytest.approx(2 * 1111 - 22)


def test_plans_may_come_as_an_array(cost: Cost) -> None:
    predictor = table().predictor(cost, FULL)
    plans = np.array([[[1, 1], [6, 3]], [[8, 2], [8, 4]]])
    expected = [[predictor.milliseconds(plan) for plan in row] for row in plans.tolist()]
    assert np.allclose(predictor.nanoseconds(plans) / 1e6, expected)


times = st.lists(st.floats(0, 1e6), min_size=4, max_size=4)


@settings(max_examples=50, deadline=None)
@given(times, st.tuples(st.integers(1, 8), st.integers(1, 4)), st.tuples(st.integers(1, 8), st.integers(1, 4)))
def test_more_filters_never_cost_less(
    cost: Cost, drawn: list[float], one: tuple[int, int], other: tuple[int, int]
) -> None:
    """Noise may make a measured time fall with the width."""
    layers = dict(table().layers) | {"2": LayerTimes((4, 8), (2, 4), (tuple(drawn[:2]), tuple(drawn[2:])))}
    predictor = table(layers=layers).predictor(cost, FULL)
    assert predictor.milliseconds(tuple(map(min, one, other))) <= predictor.milliseconds(one) + 1e-6


def test_a_saved_table_is_the_same(tmp_path: Path) -> None:
    before = table(scale=1.5, rest_ms=-0.25, measured_on="a phone")
    before.save(tmp_path / "table.json")
    assert LatencyTable.load(tmp_path / "table.json") == before


def test_a_table_in_which_widths_do_not_count_is_refused(cost: Cost) -> None:
    with pytest.raises(ValueError, match="rest_ms"):
        table(rest_ms=-1e6).predictor(cost, FULL)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"layers": {}}, "0"),
        ({"layers": {name: times for name, times in table().layers.items() if name != "2"}}, "'2'"),
        ({"layers": {**table().layers, "2": LayerTimes((8,), (2, 3), ((1.0, 2.0),))}}, "3 outputs.*'2'.*4"),
        ({"layers": {**table().layers, "4": LayerTimes((32,), (2,), ((1.0,),))}}, "32 inputs.*'4'.*64"),
        ({"layers": {**table().layers, "2": LayerTimes((8,), (5, 9), ((1.0, 2.0),))}}, "5 to 9 outputs.*'2'.*4"),
    ],
)
def test_a_table_of_another_network_is_refused_by_layer(cost: Cost, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        table(**changes).predictor(cost, FULL)


def test_layers_that_never_run_need_no_times() -> None:
    whole, images = nn.Sequential(*network(), nn.Identity()), torch.zeros(2, 3, 6, 6)
    whole[5].unused = nn.Conv2d(1, 1, 1)
    cost = Cost(whole, find_groups(whole, images), images)
    assert "5.unused" in cost.layers
    assert table().predictor(cost, FULL).milliseconds(FULL) == pytest.approx(1111)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("", "table"),
        ("[]", "layers"),
        ('{"layers": 3}', "layers"),
        ('{"layers": {"0": {"inputs": [3], "outputs": [4]}}}', "'0'.*milliseconds"),
        ('{"layers": {"0": {"inputs": [3], "outputs": [8, 4], "milliseconds": [[1, 2]]}}}', "'0'.*outputs"),
        ('{"layers": {"0": {"inputs": [3], "outputs": [4, 8], "milliseconds": [[1]]}}}', "'0'.*milliseconds"),
        ('{"layers": {"0": {"inputs": [3], "outputs": [4], "milliseconds": [[-1]]}}}', "'0'.*milliseconds"),
        ('{"layers": {"0": {"inputs": [3], "outputs": [4], "milliseconds": [[NaN]]}}}', "'0'.*milliseconds"),
        ('{"layers": {}, "scale": 0}', "scale"),
        ('{"layers": {}, "speed": 1}', "speed"),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, content: str, named: str) -> None:
    file = tmp_path / "table.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=rf"table\.json.*{named}"):
        LatencyTable.load(file)


def test_a_table_may_start_with_a_byte_order_mark(tmp_path: Path) -> None:
    table().save(tmp_path / "table.json")
    text = (tmp_path / "table.json").read_text(encoding="utf-8")
    (tmp_path / "marked.json").write_text(text, encoding="utf-8-sig")
    assert LatencyTable.load(tmp_path / "marked.json") == LatencyTable.load(tmp_path / "table.json")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        LatencyTable.load(tmp_path / "none.json")


def test_the_file_is_plain_json(tmp_path: Path) -> None:
    table().save(tmp_path / "table.json")
    content = json.loads((tmp_path / "table.json").read_text())
    assert content["layers"]["0"] == {"inputs": [3], "outputs": [4, 8], "milliseconds": [[0.5, 1.0]]}
