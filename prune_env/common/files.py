"""The cache folder, and files that are written whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

_HOST = hashlib.blake2b(socket.gethostname().encode(), digest_size=4).hexdigest()
_TEMPORARY = re.compile(r"\..*?-(?:([0-9a-f]{8})-(\d+)-)?[0-9a-f]{32}(?:\.\w+)?")
_DAY = 24 * 60 * 60


def cache_dir() -> Path:
    """Return the user's cache folder: $PRUNE_ENV_CACHE, or else prune_env in $XDG_CACHE_HOME or in ~/.cache."""
    if own := os.environ.get("PRUNE_ENV_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "prune_env"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Replace a file atomically.

    Temporary files that killed processes left in the folder are deleted.

    Args:
        path: The file to write; missing parent folders are created.

    Yields:
        A temporary path in the same folder. Write to it: it replaces `path` if the block ends without an error, and is
        deleted otherwise.

    Raises:
        OSError: The file cannot be written, for example on a full disk; `path` is unchanged.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        temporary = path.with_name(f".{path.stem}-{_HOST}-{os.getpid()}-{uuid.uuid4().hex}{path.suffix}")
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        try:
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno is None:  # not an error of the file system
            raise
        raise write_error(path, error) from error


def write_error(path: Path, error: Exception) -> OSError:
    """Return the error of a file that could not be written: one line with the file, the reason and the free space."""
    code, reason = getattr(error, "errno", None), getattr(error, "strerror", None) or str(error)
    if code is None:  # safetensors only has the text of the system's error
        match = re.search(r"code: (\d+)", str(error))
        code = int(match[1]) if match else errno.EIO
        reason = os.strerror(code)
    free = free_bytes(path.parent)
    return OSError(code, f"cannot write {path}: {reason} ({free / 2**20:.1f} MiB are free); the file is unchanged")


def free_bytes(folder: Path) -> int:
    """Return the free space of the file system of a folder, which need not exist."""
    folder = folder.absolute()
    return shutil.disk_usage(next((one for one in (folder, *folder.parents) if one.is_dir()), Path("/"))).free


def check_space(folder: Path, size: float) -> None:
    """Check that a folder has room for what will be written.

    Args:
        folder: The folder; it need not exist.
        size: Number of bytes.

    Raises:
        OSError: There is less space.
    """
    if (free := free_bytes(folder)) < size:
        raise OSError(
            errno.ENOSPC,
            f"{folder} has {free / 2**20:.1f} MiB of free space, about {size / 2**20:.1f} MiB will be written; free "
            "some space or choose another folder",
        )


def sweep(folder: Path) -> None:
    """Delete the temporary files of `replacing` whose processes have ended, or that are older than a day."""
    for file in folder.iterdir():
        if match := _TEMPORARY.fullmatch(file.name):
            with suppress(OSError):  # another process deletes it as well
                ended = match[1] == _HOST and not _is_alive(int(match[2]))
                if ended or time.time() - file.stat().st_mtime > _DAY:
                    file.unlink()


def _is_alive(process: int) -> bool:
    if os.name != "posix":  # the signal 0 would end the process
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True
