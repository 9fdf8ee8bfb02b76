"""The cache folder, and writing files so that a killed process never leaves a partial one."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_dir() -> Path:
    """Return the user's cache folder: $PRUNE_ENV_CACHE, or else prune_env in $XDG_CACHE_HOME or in ~/.cache."""
    if own := os.environ.get("PRUNE_ENV_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "prune_env"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Replace a file atomically.

    Args:
        path: The file to write; missing parent folders are created.

    Yields:
        A temporary path in the same folder. Write to it: it replaces `path` if the block ends without an error, and is
        deleted otherwise.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}-{uuid.uuid4().hex}{path.suffix}")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
