"""Choose layers by patterns on their paths: `conv1`, `layer4.*`, `*.downsample.*`.

`*` stands for any text, dots included, and `?` for one character, as in `fnmatch`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from ..common.settings import Settings
from .groups import Protected, PruningGroup


@dataclass(frozen=True)
class LayersConfig(Settings):
    """Which layers may lose filters.

    Raises:
        ValueError: A field has a value that is not allowed; the message names the field.
    """

    exclude: tuple[str, ...] = ()
    """Patterns of layers that keep all filters, such as conv1 or 'layer4.*'. They and the layers that are tied to them
    are no agents."""
    only: tuple[str, ...] = ()
    """Patterns of the only layers that may lose filters; none for all layers."""
    linear: bool | None = None
    """Whether hidden linear layers are agents as well, with their outputs as filters; None for True if they hold over a
    tenth of the network's parameters. The last layer, whose outputs are the logits, never is."""


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
    groups: Sequence[PruningGroup], layers: LayersConfig
) -> tuple[list[PruningGroup], list[Protected]]:
    """Separate the groups that may be pruned from those that a user wants to keep whole.

    Args:
        groups: The groups of a network.
        layers: Which layers may lose filters.

    Returns:
        The groups that may be pruned, renamed conv_0, conv_1, ...; and the others: those with a layer that `exclude`
        matches, or that `only` does not match.

    Raises:
        ValueError: A pattern matches no layer of a group.
    """
    check_patterns("exclude", layers.exclude, groups)
    check_patterns("only", layers.only, groups)
    chosen: list[PruningGroup] = []
    excluded = []
    for group in groups:
        reasons = (_reason(layer, layers.exclude, layers.only) for layer in group.layers)
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
