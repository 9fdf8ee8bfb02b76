"""Warnings that point at the code of the user."""

from __future__ import annotations

import sys
import warnings

_OWN = (__name__.partition(".")[0], "torch")


def warn(message: str) -> None:
    """Warn, and give as the place the line of the user's code that called this package, directly or through torch."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _OWN:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
