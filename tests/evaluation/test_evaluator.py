"""An evaluator that delegates forwards every member of the protocol, so that a user overrides only what differs."""

from __future__ import annotations

from unittest.mock import Mock

import pytest

from prune_env.evaluation.evaluator import DelegatingEvaluator, Evaluator

PROPERTIES = ("problem", "config", "device", "original_accuracy")
METHODS = {
    "accuracy": ("plan",),
    "submit": ("plan",),
    "accuracy_of": ("network",),
    "network": ("plan",),
    "recalibrate": ("network",),
    "remember": ("plan", 0.5),
    "close": (),
}


def test_every_member_of_the_protocol_is_listed_here() -> None:
    assert {*PROPERTIES, *METHODS} == {name for name in vars(Evaluator) if not name.startswith("_")}


@pytest.mark.parametrize("name", PROPERTIES)
def test_properties_are_those_of_the_other_evaluator(name: str) -> None:
    other = Mock()
    assert getattr(DelegatingEvaluator(other), name) is getattr(other, name)


@pytest.mark.parametrize("name", METHODS)
def test_methods_call_the_other_evaluator(name: str) -> None:
    other = Mock(**{f"{name}.return_value": None if name in ("submit", "recalibrate", "remember", "close") else "it"})
    assert getattr(DelegatingEvaluator(other), name)(*METHODS[name]) == getattr(other, name).return_value
    getattr(other, name).assert_called_once_with(*METHODS[name])
