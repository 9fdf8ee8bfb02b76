"""The cache folder, and files that are written whole or not at all, checked when they are read, and locked."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .torch_files import read_torch

_HOST = hashlib.blake2b(socket.gethostname().encode(), digest_size=4).hexdigest()
_TEMPORARY = re.compile(r"\..*?-(?:([0-9a-f]{8})-(\d+)-)?[0-9a-f]{32}(?:\.\w+)?")
_DAY = 24 * 60 * 60
CHECKSUM_BYTES = 16
_held: dict[tuple[int, Path], IO[str]] = {}
"""Process id and lock file -> the open file, for the locks that this process holds until it ends."""


class DamagedFileError(ValueError):
    """The contents of a file are not those that were written."""


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


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors as safetensors, with a digest of them and of the file's name in its metadata."""
    with replacing(path) as temporary:
        save_file(dict(tensors), temporary, metadata={"digest": _digest(path.name, tensors)})


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of `save_tensors`. Files of older versions have no digest and are read without the check.

    Raises:
        DamagedFileError: The file is damaged, or another file was copied to its place.
    """
    try:
        with safe_open(path, "pt") as file:
            digest = (file.metadata() or {}).get("digest")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors and torch raise several types for damaged headers
        raise DamagedFileError(f"{path} is damaged or truncated") from error
    if digest is not None and digest != _digest(path.name, tensors):
        raise DamagedFileError(f"{path} is damaged: its contents do not have the digest that was stored with them")
    return tensors


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write nested plain values and tensors as a torch file, followed by a digest of it.

    The checksums of torch's own format do not cover the headers, and `torch.load` does not verify them.
    """
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    content = buffer.getvalue()
    with replacing(path) as temporary:
        temporary.write_bytes(content + _checksum(content))


def load_state(path: Path) -> dict[str, Any]:
    """Read the values of `save_state`, with tensors on the CPU. Only tensors and plain values are unpickled.

    Raises:
        DamagedFileError: The file is damaged, or not such a file.
    """
    content = path.read_bytes()
    content, checksum = content[:-CHECKSUM_BYTES], content[-CHECKSUM_BYTES:]
    if checksum != _checksum(content):
        raise DamagedFileError(f"{path} is damaged or truncated")
    try:
        state = read_torch(io.BytesIO(content))
    except ValueError as error:
        raise DamagedFileError(f"{path} is damaged: {error}") from error
    if not isinstance(state, dict):
        raise DamagedFileError(f"{path} is damaged: it holds something else than values by name")
    return state


def _checksum(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=CHECKSUM_BYTES).digest()


def _digest(name: str, tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.blake2b(name.encode(), digest_size=16)
    for key in sorted(tensors):
        tensor = tensors[key]
        digest.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
