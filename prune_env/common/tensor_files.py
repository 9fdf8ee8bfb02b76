"""Files of tensors and plain values, which are checked when they are read."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from .files import replacing
from .torch_files import read_torch

CHECKSUM_BYTES = 16


class DamagedFileError(ValueError):
    """The contents of a file are not those that were written."""


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
