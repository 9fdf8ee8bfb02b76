"""Choose layers by patterns on their paths: `conv1`, `layer4.*`, `*.downsample.*`.

`*` stands for any text, dots included, and `?` for one character, as in `fnmatch`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from .groups import Protected, PruningGroup


def first_match(layer: str, patterns: Iterable[str]) -> str | None:
    """Return the first pattern that matches a layer, or None."""
    return next((pattern for pattern in patterns if fnmatchcase(layer, pattern)), None)


def check_patterns(setting: str, patterns: Iterable[str], groups: Sequence[PruningGroup]) -> None:
    """Check that every pattern matches a layer of a pruning group.

    Args:
        setting: Name of the setting that holds the patterns, for the message.
        patterns: The patterns.
        groups: The groups.

    Raises:
        ValueError: A pattern matches none; the message lists the layers.
    """
    layers = [layer for group in groups for layer in group.layers]
    for pattern in patterns:
        if not any(fnmatchcase(layer, pattern) for layer in layers):
            raise ValueError(
                f"{setting} pattern {pattern!r} matches no layer that can be pruned; these can be: {', '.join(layers)}"
            )


def chosen_and_excluded(
    groups: Sequence[PruningGroup], exclude: Sequence[str], only: Sequence[str]
) -> tuple[list[PruningGroup], list[Protected]]:
    """Separate the groups that may be pruned from those that a user wants to keep whole.

    Args:
        groups: The groups of a network.
        exclude: Patterns of layers that keep all filters.
        only: Patterns of the layers that may lose filters; none for all.

    Returns:
        The groups that may be pruned, renamed conv_0, conv_1, ...; and the others: those with a layer that `exclude`
        matches, or that `only` does not match.

    Raises:
        ValueError: A pattern matches no layer of a group.
    """
    check_patterns("exclude", exclude, groups)
    check_patterns("only", only, groups)
    chosen: list[PruningGroup] = []
    excluded = []
    for group in groups:
        reasons = (_reason(layer, exclude, only) for layer in group.layers)
        if reason := next(filter(None, reasons), None):
            excluded.append(Protected(group.layers, group.filters, reason, excluded=True))
        else:
            chosen.append(replace(group, name=f"conv_{len(chosen)}"))
    return chosen, excluded


def _reason(layer: str, exclude: Sequence[str], only: Sequence[str]) -> str | None:
    """Return why a layer keeps all filters, or None if it may lose some."""
    if pattern := first_match(layer, exclude):
        return f"excluded by exclude={pattern!r}, which matches {layer}"
    if only and not first_match(layer, only):
        return f"excluded by only, which does not match {layer}"
    return None
