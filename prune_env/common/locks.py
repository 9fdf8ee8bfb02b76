"""Locks of files, which a process holds until it ends."""

from __future__ import annotations

import errno
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

_held: dict[tuple[int, Path], IO[str]] = {}
"""Process id and lock file -> the open file, for the locks that this process holds."""


def hold(file: Path, *, wait: bool = False) -> None:
    """Lock a file until this process ends, however it ends, or until `release`. A process can hold a lock repeatedly.

    Args:
        file: The lock file. It stays in its folder, and names the process that holds it.
        wait: Wait for another process instead of raising an error.

    Raises:
        BlockingIOError: Another process holds the lock; the message names it.
        FileExistsError: The lock file is a link, or no plain file.
    """
    key = (os.getpid(), file.absolute())
    if key in _held:
        return
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        return
    if file.is_symlink() or (file.exists() and not file.is_file()):  # a link could lead to a file of the user
        raise FileExistsError(errno.EEXIST, f"{file} is a link, or no plain file; delete it")
    stream = file.open("a+", encoding="utf-8")
    try:
        # Unlike flock, lockf is not inherited by worker processes, which can survive a killed process for a moment.
        fcntl.lockf(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        stream.seek(0)
        holder = stream.read().strip() or "another process"
        stream.close()
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise BlockingIOError(error.errno, f"{file.parent} is in use by {holder}; wait for it or end it") from error
        return  # a file system without locks
    _held[key] = stream
    with suppress(OSError):  # the text is only for messages, and the disk may be full
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        stream.flush()


def release(file: Path) -> None:
    """Release a lock of `hold`, if this process holds it."""
    if stream := _held.pop((os.getpid(), file.absolute()), None):
        stream.close()
