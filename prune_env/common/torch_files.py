"""Read torch files that may come from somebody else: no code runs, and memory is bounded by the size of the file."""

from __future__ import annotations

import zipfile
from typing import IO, Any

import torch

BUFFER = b"bytearray"
"""Name of the only type that torch unpickles and whose size is a number in the file."""


def read_torch(file: IO[bytes]) -> Any:
    """Return the contents of a torch file, with tensors on the CPU. Only tensors and plain values are unpickled.

    Raises:
        ValueError: The file is damaged, holds something else, or would need more memory than its size.
    """
    try:
        if zipfile.is_zipfile(file):
            _check_archive(file)
        elif file.seek(0) or BUFFER in file.read():  # the format of torch 1.5 and earlier
            raise ValueError("a buffer of any size")
        file.seek(0)
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's unpickler raises many types on foreign bytes: IndexError, EOFError, ...
        # torch's own message is left out: it is long, and recommends to load files that run code.
        raise ValueError(f"it is no torch file of tensors and plain values ({type(error).__name__})") from error


def _check_archive(file: IO[bytes]) -> None:
    """Check that the parts of an archive are stored as they are, next to each other, and that none makes a buffer."""
    size = file.seek(0, 2)
    with zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
        if sum(part.file_size for part in parts) > size or any(part.compress_type for part in parts):
            raise ValueError("compressed or overlapping parts")
        if any(BUFFER in archive.read(part) for part in parts if part.filename.endswith(".pkl")):
            raise ValueError("a buffer of any size")
