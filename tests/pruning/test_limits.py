"""Limits by layer pattern: the last pattern that matches a layer counts, and a group keeps the limits of all layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prune_env import EnvConfig
from prune_env.pruning import PruningGroup
from prune_env.pruning.limits import Limits, fitting_multiple

GROUPS = tuple(
    PruningGroup(f"conv_{number}", layers, 64, ())
    for number, layers in enumerate([("conv1", "layer1.1"), ("layer1.0",), ("layer2.0", "layer2.1")])
)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"min_filters": 2, "max_rate": 1.0, "round_to": (8, 8, 8)}),
        ({"min_filters": 8, "round_to": 4}, {"min_filters": 8, "max_rate": 1.0, "round_to": 4}),
        ({"min_filters": {}}, {"min_filters": (2, 2, 2)}),
        ({"min_filters": {"layer1.*": 8}}, {"min_filters": (8, 8, 2)}),
        ({"min_filters": {"*": 8, "layer1.0": 1}}, {"min_filters": (8, 1, 8)}),  # the last pattern counts
        ({"min_filters": {"layer1.0": 1, "*": 8}}, {"min_filters": (8, 8, 8)}),
        ({"min_filters": {"conv1": 16, "layer1.1": 4}}, {"min_filters": (16, 2, 2)}),  # both layers are satisfied
        ({"max_rate": {"layer2.1": 0.25}}, {"max_rate": (1.0, 1.0, 0.25)}),
        ({"max_rate": {"conv1": 0.5, "layer1.*": 0.75}}, {"max_rate": (0.5, 0.75, 1.0)}),
        ({"round_to": {"conv1": 4, "layer1.1": 6}}, {"round_to": (12, 8, 8)}),
    ],
)
def test_numbers_by_pattern(settings: dict[str, Any], expected: dict[str, Any]) -> None:
    limits = EnvConfig(**settings).limits(GROUPS)
    assert {name: getattr(limits, name) for name in expected} == expected


@pytest.mark.parametrize("setting", ["min_filters", "max_rate", "round_to"])
def test_a_pattern_that_matches_no_layer_is_an_error_that_lists_them(setting: str) -> None:
    with pytest.raises(ValueError, match=rf"{setting} .*'fc'.* conv1, layer1\.1"):
        EnvConfig(**{setting: {"conv1": 1, "fc": 1}}).limits(GROUPS)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("min_filters", {"conv1": 0}),
        ("min_filters", {1: 2}),
        ("min_filters", {"conv1": 1.5}),
        ("max_rate", 1.5),
        ("max_rate", {"conv1": -0.1}),
        ("max_rate", {"conv1": None}),
        ("max_rate", [("conv1", 0.5)]),
        ("round_to", {"conv1": "8"}),
    ],
)
def test_wrong_numbers_are_named(setting: str, value: Any) -> None:
    with pytest.raises(ValueError, match=setting):
        EnvConfig(**{setting: value})


def test_numbers_of_other_libraries_are_converted() -> None:
    config = EnvConfig(min_filters={"conv1": np.int64(3)}, max_rate={"conv1": torch.tensor(0.5)})
    assert (config.min_filters, config.max_rate) == ({"conv1": 3}, {"conv1": 0.5})


@given(
    st.lists(st.integers(1, 200), min_size=1, max_size=6).map(tuple),
    st.integers(1, 40),
    st.sampled_from((0.0, 0.1, 0.29, 1 / 3, 0.5, 0.9, 1.0)),
    st.sampled_from((1, 4, 8)),
)
def test_the_fewest_filters(full: tuple[int, ...], min_filters: int, max_rate: float, round_to: int) -> None:
    fewest = Limits(min_filters, max_rate, round_to).fewest(full).tolist()
    equal = Limits(*((value,) * len(full) for value in (min_filters, max_rate, round_to)))  # one for each group
    assert fewest == equal.fewest(full).tolist()
    for least, all_filters in zip(fewest, full, strict=True):
        assert least == all_filters or (least >= min_filters and least % round_to == 0)
        assert all_filters - least <= max_rate * all_filters + 1e-6
        lower = (least - 1) // round_to * round_to  # the next count below breaks a limit
        assert lower < min_filters or all_filters - lower > max_rate * all_filters + 1e-6


def test_a_rate_counts_as_the_decimal_that_is_written() -> None:
    assert Limits(max_rate=0.29).fewest((100,)).tolist() == [71]


def test_equal_numbers_print_once() -> None:
    assert str(Limits(2, (0.5, 0.5), (1, 8))) == "min_filters=2, max_rate=0.5, round_to=(1, 8)"


@given(st.integers(1, 4096))
def test_by_default_at_least_four_counts_are_left_where_they_are_rounded(filters: int) -> None:
    multiple = fitting_multiple(filters)
    assert multiple in (1, 2, 4, 8)
    assert multiple == 1 or filters >= 4 * multiple
    assert multiple == 8 or filters < 8 * multiple
