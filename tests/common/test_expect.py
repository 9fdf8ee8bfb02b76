"""Checks of the types and names of arguments."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from prune_env.common.expect import expect, expect_fields


@dataclass
class Settings:
    mean: float = 0.0
    classes: int = 2


@dataclass
class Others:
    workers: int = 1


def test_the_right_type_passes() -> None:
    expect(3, int, "the number must be an int")
    expect(None, (int, type(None)), "the number must be an int")


@pytest.mark.parametrize(("value", "name"), [("3", "str"), (int, "class int")])
def test_another_type_is_named(value: object, name: str) -> None:
    with pytest.raises(TypeError, match=name):
        expect(value, int, "the number must be an int")


def test_unknown_settings_are_named_with_the_closest_one() -> None:
    expect_fields(["mean", "classes"], "make", Settings)
    with pytest.raises(TypeError, match=r"make.*'clases'.*'classes'"):
        expect_fields(["mean", "clases"], "make", Settings)
    with pytest.raises(TypeError, match=r"'x'.*mean, classes"):
        expect_fields(["x"], "make", Settings)
    expect_fields(["mean", "workers"], "make", Settings, Others)
    with pytest.raises(TypeError, match=r"'x'.*mean, classes, workers"):
        expect_fields(["x"], "make", Settings, Others)
