"""Progress bars on stderr."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


def progress_bar(*arguments: Any, **settings: Any) -> tqdm:
    """Return a bar of tqdm that is drawn every second on a terminal, and once a minute in a log file."""
    seconds = 1 if sys.stderr.isatty() else 60
    return tqdm(*arguments, **{"mininterval": seconds, "maxinterval": max(10, seconds), **settings})
