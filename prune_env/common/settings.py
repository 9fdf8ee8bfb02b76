"""Checks of settings: every field of a config dataclass is checked from its annotation when the object is made.

The types below carry a range: `epochs: Positive`, `workers: Count | None`, `rates: tuple[Fraction, ...]`. Write
`Annotated[float, Range(low, high)]` for another range. What no annotation can express is checked in `__post_init__`,
after `super().__post_init__()`.
"""

from __future__ import annotations

import os
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from .fingerprints import function_fingerprint

LARGEST = 2**31 - 1
"""The largest number that a setting takes unless its range says otherwise; larger numbers are mistakes."""


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high` that a setting takes. NaN and infinity are never allowed."""

    low: float = -LARGEST
    high: float = LARGEST
    above: bool = False
    """Whether `low` itself is not allowed."""
    below: bool = False
    """Whether `high` itself is not allowed."""

    def __contains__(self, number: float) -> bool:
        return (self.low < number if self.above else self.low <= number) and (
            number < self.high if self.below else number <= self.high
        )

    def __str__(self) -> str:
        return f"{'above' if self.above else 'from'} {self.low} {'and below' if self.below else 'up to'} {self.high}"


Count = Annotated[int, Range(1)]
Whole = Annotated[int, Range(0)]
Seed = Annotated[int, Range(0, 2**63 - 1)]
Positive = Annotated[float, Range(0, above=True)]
NotNegative = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1)]
BelowOne = Annotated[float, Range(0, 1, below=True)]


class Settings:
    """Base of config dataclasses: checks every field from its annotation.

    Numbers and arrays of numpy and torch become Python's, lists become tuples, and text becomes a path, where the
    annotation allows the result.

    Raises:
        ValueError: A field has a value that is not allowed; the message names field, value and what is allowed.
    """

    def __post_init__(self) -> None:
        hints: dict[str, Any] = _hints(type(self))  # type: ignore[arg-type]  # a class can be hashed
        for field in fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            value = getattr(self, field.name)
            if (found := checked(field.name, value, hints[field.name])) is not value:
                object.__setattr__(self, field.name, found)

    def texts(self) -> dict[str, str]:
        """Return the name of every field and its value as text, the same in every process."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {name: function_fingerprint(value) if callable(value) else repr(value) for name, value in values.items()}


def checked(name: str, value: Any, kind: Any) -> Any:
    """Return a setting or an argument, converted to its type.

    Args:
        name: Its name, for the message.
        value: Its value.
        kind: A type annotation, such as `Count` or `Fraction | None`.

    Raises:
        ValueError: The value is not of that kind; the message names it and what is allowed.
    """
    try:
        return _converted(value, kind)
    except _Refused:
        raise ValueError(f"{name} must be {_described(kind)}; got {_shown(value)}") from None


class _Refused(Exception):
    """The value is not of the kind."""


@cache
def _hints(config: type) -> dict[str, Any]:
    return get_type_hints(config, include_extras=True)


def _converted(value: Any, kind: Any) -> Any:
    """Return the value as this kind, or raise `_Refused`."""
    if callable(plain := getattr(value, "tolist", None)) and not isinstance(value, type):
        value = plain()  # numbers and arrays of numpy and torch
    kind, limits = _split(kind)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        for option in arguments:
            try:
                return _converted(value, option)
            except _Refused:
                continue
    elif origin is tuple and isinstance(value, (list, tuple)):
        kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(kinds) == len(value):
            return tuple(map(_converted, value, kinds))
    elif origin is Sequence:
        if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
            return tuple(_converted(one, arguments[0]) for one in value)
    elif origin is Mapping:
        if isinstance(value, Mapping):
            return {_converted(key, arguments[0]): _converted(one, arguments[1]) for key, one in value.items()}
    elif kind is Path and isinstance(value, (str, os.PathLike)):
        if (text := os.fspath(value)) and isinstance(text, str) and "\0" not in text:
            return Path(text) if isinstance(value, str) else value
    elif origin is Literal:
        if any(value == choice and type(value) is type(choice) for choice in arguments):
            return value
    elif kind in (int, float):
        number = not isinstance(value, bool) and isinstance(value, int if kind is int else (int, float))
        if number and value in limits:
            return value
    elif kind is Any or (origin is Callable and callable(value)) or isinstance(value, origin or kind):
        return value
    raise _Refused


def _split(kind: Any) -> tuple[Any, Range]:
    """Return the type of an annotation and the range that goes with it."""
    if get_origin(kind) is not Annotated:
        return kind, Range()
    inner, *extras = get_args(kind)
    return inner, next((extra for extra in extras if isinstance(extra, Range)), _split(inner)[1])


def _described(kind: Any) -> str:
    """Return what is allowed, in words."""
    kind, limits = _split(kind)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_described, arguments)))
    if origin is Literal:
        return "one of " + ", ".join(map(repr, arguments))
    if origin in (tuple, Sequence):
        inside = [_described(one) for one in arguments if one is not Ellipsis]
        return f"a tuple (every item {inside[0]})" if len(inside) == 1 else f"a tuple ({', '.join(inside)})"
    if origin is Mapping:
        return f"a mapping from {_described(arguments[0])} to {_described(arguments[1])}"
    if kind is float and limits == Range():
        return "a finite number"
    if kind in (int, float):
        return f"a {'whole ' if kind is int else ''}number {limits}"
    names: dict[Any, str] = {bool: "True or False", str: "text", Path: "a path", types.NoneType: "None"}
    return names.get(kind) or ("a function" if origin is Callable else f"a {(origin or kind).__name__}")


def _shown(value: Any) -> str:
    """Return a value as one short line."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a broken __repr__ of the caller, or an integer with too many digits to print
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:80]}..."
