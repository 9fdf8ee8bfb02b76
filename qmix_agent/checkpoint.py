"""One file that holds a whole agent; it is either there entirely or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

FILE_NAME = "checkpoint.pt"
FORMAT = "qmix_agent"
VERSION = 1

_PLAIN = (bool, int, float, str, bytes, type(None))
_ARRAY = "__ndarray__"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: damaged, of another version, or of another environment."""


def write(path: Path, content: dict[str, Any]) -> None:
    """Writes and syncs a temporary file beside `path`, then puts it in its place in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            torch.save({"format": FORMAT, "version": VERSION, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read(path: Path) -> dict[str, Any]:
    """The content, on the CPU; nothing but tensors and plain values is unpickled.

    Raises FileNotFoundError, or CheckpointError for a file that is damaged or of another version.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}; QMIX.learn(checkpoint_dir=...) or QMIX.save writes one")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen types for a damaged file
        raise CheckpointError(
            f"{path} cannot be read; it is damaged, cut short, or not a checkpoint of {FORMAT}"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of {FORMAT}")
    if content.get("version") != VERSION:
        raise CheckpointError(
            f"{path} has format version {content.get('version')}, and this {FORMAT} reads version {VERSION}; load it "
            "with the release that wrote it"
        )
    return content


def encode(value: Any, where: str = "the environment's state_dict()") -> Any:
    """A copy in which NumPy arrays are marked tensors, so that `read` takes it. Raises TypeError for other objects."""
    if isinstance(value, np.ndarray) and value.dtype != object:
        return {_ARRAY: torch.tensor(value)}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: encode(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([encode(item, f"{where}[{index}]") for index, item in enumerate(value)])
    if isinstance(value, _PLAIN):
        return value
    raise TypeError(
        f"{where} is a {type(value).__name__}, which a checkpoint cannot hold; use numbers, strings, lists, tuples, "
        "dicts, arrays and tensors"
    )


def decode(value: Any) -> Any:
    """The inverse of `encode`."""
    if isinstance(value, dict):
        if set(value) == {_ARRAY}:
            return value[_ARRAY].numpy()
        return {key: decode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([decode(item) for item in value])
    return value
