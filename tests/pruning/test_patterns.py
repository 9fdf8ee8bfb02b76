"""Patterns exclude layers: groups of several layers go whole, and a pattern that matches nothing is an error."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from prune_env.pruning import Inspection, PruningError, inspect

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    """The stem and the last layer of the block share a stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 8, 1))
        self.last = nn.Conv2d(8, 4, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.head(self.last(x + self.block(x)).mean((2, 3)))


def inspected(**settings: Any) -> Inspection:
    torch.manual_seed(0)
    return inspect(Residual().eval(), IMAGES, progress=False, **settings)


def layers(found: Inspection) -> list[tuple[str, ...]]:
    return [group.layers for group in found.groups]


ALL = [("stem", "block.2"), ("block.0",), ("last",)]


@pytest.mark.parametrize(
    ("settings", "left"),
    [
        ({}, ALL),
        ({"exclude": ("last",)}, ALL[:2]),
        ({"exclude": ("block.2",)}, ALL[1:]),  # the stem is tied to it
        ({"exclude": ["stem", "l?st"]}, ALL[1:2]),
        ({"exclude": ("block.*",)}, ALL[2:]),  # the stem and both layers of the block
        ({"only": ("block.*",)}, ALL[1:2]),  # the stem must not lose filters, and block.2 is tied to it
        ({"only": ("block.*", "stem")}, ALL[:2]),
        ({"only": ("block.*", "stem"), "exclude": ("*.0",)}, ALL[:1]),
        ({"exclude": ("*",)}, []),
    ],
)
@pytest.mark.parametrize("prove", [False, True])
def test_groups_with_an_excluded_layer_are_left_out(
    settings: dict[str, Any], left: list[tuple[str, ...]], prove: bool
) -> None:
    found = inspected(prove=prove, **settings)
    assert layers(found) == left
    assert [group.name for group in found.groups] == [f"conv_{number}" for number in range(len(left))]
    excluded = [entry for entry in found.protected if entry.excluded]
    assert {entry.layers for entry in excluded} == set(ALL) - set(left)
    for entry in excluded:
        assert "excluded by" in entry.reason
        assert entry.reason in str(found)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found.warn_protected()  # what a user asked for needs no warning


def test_a_network_with_everything_excluded_is_named() -> None:
    with pytest.raises(PruningError, match="excluded by"):
        inspected(exclude=("*",)).require_groups()


@pytest.mark.parametrize("setting", ["exclude", "only"])
@pytest.mark.parametrize("pattern", ["nothing", "head", "block", ""])
def test_a_pattern_that_matches_no_prunable_layer_is_an_error_that_lists_them(setting: str, pattern: str) -> None:
    with pytest.raises(ValueError, match=rf"{setting} .*'{pattern}'.* stem, block\.2, block\.0, last"):
        inspected(**{setting: ("stem", pattern)})


@pytest.mark.parametrize("setting", ["exclude", "only"])
def test_one_text_is_no_tuple_of_patterns(setting: str) -> None:
    with pytest.raises(ValueError, match=f"{setting} .*'stem'"):
        inspected(**{setting: "stem"})
