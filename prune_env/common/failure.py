"""Describe an exception in one line, for the messages of other exceptions."""

from __future__ import annotations

import traceback
from pathlib import Path


def described(error: BaseException) -> str:
    """Return the type and message of an exception; without a message, the line of code that raised it."""
    kind, text = type(error).__name__, str(error).strip()
    if text:
        return f"{kind}: {text}"
    frames = traceback.extract_tb(error.__traceback__)
    return f"{kind} at {Path(frames[-1].filename).name}:{frames[-1].lineno}: {frames[-1].line}" if frames else kind
