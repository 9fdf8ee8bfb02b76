"""Rules for operations of users, and the registry of rules."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
import torch
from torch import nn

from prune_env.pruning import inspect
from prune_env.pruning.grouping import groups_and_protected
from prune_env.pruning.rules import Call, Trace, rule

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def operation(name: str) -> Any:
    return getattr(torch.ops.prune_env_test, name)


@pytest.fixture
def halve() -> str:
    """Name of an operation of a user."""
    name = f"halve_{uuid.uuid4().hex}"

    @torch.library.custom_op(f"prune_env_test::{name}", mutates_args=())
    def halve(x: torch.Tensor) -> torch.Tensor:
        return x / 2

    return name


class Net(nn.Module):
    """Two convolutions with an operation between them."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.first, self.second, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(operation(self.name)(self.first(x))).mean((2, 3)))


def test_an_operation_without_a_rule_protects_its_operands(halve: str) -> None:
    groups, (entry,) = groups_and_protected(Net(halve), IMAGES)
    assert [group.layers for group in groups] == [("second",)]
    assert entry.layers == ("first",)
    assert halve in entry.reason


def test_a_rule_of_the_user(halve: str) -> None:
    @rule(operation(halve))
    def same(trace: Trace, call: Call) -> None:
        trace[call.result] = trace[call.input]

    inspection = inspect(Net(halve), IMAGES)
    assert [group.layers for group in inspection.groups] == [("first",), ("second",)]
    assert max((inspection.differences or {}).values()) < 1e-4
    rule(operation(halve))(same)  # again, as a notebook cell does


def test_a_rule_that_fails_protects_the_operands(halve: str) -> None:
    @rule(operation(halve))
    def wrong(trace: Trace, call: Call) -> None:
        raise ValueError("this form of the call is not supported")

    _, (entry,) = groups_and_protected(Net(halve), IMAGES)
    assert entry.layers == ("first",)


def test_an_operation_has_one_rule() -> None:
    with pytest.raises(ValueError, match=r"aten\.cat"):
        rule(torch.ops.aten.cat)(lambda trace, call: None)


def test_a_misspelt_operation_is_an_error() -> None:
    with pytest.raises(AttributeError, match="concatenated"):
        rule(torch.ops.aten.concatenated)
