"""Arguments of the wrong type are named where they come in, not by an AttributeError from deep inside."""

from __future__ import annotations


def expect(value: object, kind: type | tuple[type, ...], told: str, remedy: str = "") -> None:
    """Raises TypeError where `value` is of no such kind.

    told    what it is and must be, such as "the model must be a network (nn.Module)"
    remedy  what to do, where that does not follow
    """
    if isinstance(value, kind):
        return
    given = f"class {value.__name__}, not an object" if isinstance(value, type) else type(value).__name__
    raise TypeError(f"{told}, got {given}; {remedy}" if remedy else f"{told}, got {given}")
