"""Checks of arguments at public functions, so that a wrong type does not end in an AttributeError deep inside."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from difflib import get_close_matches
from typing import Any


def expect(value: object, kind: type | tuple[type, ...], requirement: str, remedy: str = "") -> None:
    """Check the type of an argument.

    Args:
        value: The argument.
        kind: The type that it must have, or several types.
        requirement: The start of the message, such as "the model must be a network (nn.Module)".
        remedy: What the caller can do instead, if the requirement does not already say it.

    Raises:
        TypeError: `value` has another type.
    """
    if isinstance(value, kind):
        return
    given = f"class {value.__name__}, not an object" if isinstance(value, type) else type(value).__name__
    raise TypeError(f"{requirement}, got {given}; {remedy}" if remedy else f"{requirement}, got {given}")


def expect_fields(names: Iterable[str], function: str, *configs: Any) -> None:
    """Check that keyword arguments are fields of a dataclass.

    Args:
        names: The names of the keyword arguments.
        function: The name of the function that takes them, for the message.
        configs: The dataclasses, each of which has some of the fields.

    Raises:
        TypeError: A name is not a field; the message suggests the closest one.
    """
    known = [field.name for config in configs for field in fields(config)]
    for name in names:
        if name not in known:
            close = get_close_matches(name, known, 1)
            remedy = f"did you mean {close[0]!r}?" if close else f"choose among {', '.join(known)}"
            raise TypeError(f"{function} has no setting {name!r}; {remedy}")
