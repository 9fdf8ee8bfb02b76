"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO


def write_beside(path: Path, write: Callable[[IO[bytes]], object], remains: str) -> Path:
    """Write a temporary file next to `path`, synchronise it to disk, and return it. The caller renames it to `path`.

    Args:
        path: The file that the temporary file will replace.
        write: Writes the contents to an open file.
        remains: What is unchanged if this fails, for the message.

    Raises:
        OSError: The file cannot be written, for example on a full disk. No file has changed.
    """
    temporary = path.with_name(f".{path.name}.writing")
    try:
        temporary.unlink(missing_ok=True)
        with temporary.open("xb") as file:  # never through a link
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        cause = error.__context__ if isinstance(error, RuntimeError) else error  # torch wraps the file's own error
        if not isinstance(cause, OSError):
            raise
        raise write_error(path, cause, remains) from error
    return temporary


def write_error(path: Path, error: OSError, remains: str) -> OSError:
    """Return an error of one line that names the file, the reason, the free space, and what remains."""
    free = shutil.disk_usage(path.parent).free / 2**20
    reason = error.strerror or str(error)
    return OSError(error.errno, f"cannot write {path}: {reason} ({free:.1f} MiB are free); {remains}")
