"""Checkpoint files: each holds a whole agent and is written atomically; a few older ones are kept."""

from __future__ import annotations

import os
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .files import write_beside

FILE_NAME = "checkpoint.pt"
FORMAT = "qmix_agent"
VERSION = 7

_PLAIN_TYPES = (bool, int, float, str, bytes, type(None))
_ARRAY_KEY = "__ndarray__"
_OLDER_NAME = re.compile(r"checkpoint\.(\d+)\.pt")


class CheckpointError(ValueError):
    """A checkpoint cannot be used: it is damaged, of another version, or of another environment."""


def list_files(directory: Path) -> list[Path]:
    """Return the checkpoint files in `directory`, newest first."""
    older = [(int(match[1]), path) for path in directory.glob("*.pt") if (match := _OLDER_NAME.fullmatch(path.name))]
    newest = [directory / FILE_NAME] if (directory / FILE_NAME).is_file() else []
    return newest + [path for _, path in sorted(older)]


def write(directory: Path, content: dict[str, Any], keep: int) -> Path:
    """Write a checkpoint and keep the `keep - 1` checkpoints before it as checkpoint.1.pt, checkpoint.2.pt, ...

    The content is written to a temporary file and synchronised to disk before any existing file is renamed, so every
    checkpoint file is complete whenever the process is killed.

    Returns:
        Path of the new file.

    Raises:
        OSError: The file cannot be written, for example on a full disk. All existing files are unchanged.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / FILE_NAME
    content = {"format": FORMAT, "version": VERSION, **content}
    temporary = write_beside(path, lambda file: torch.save(content, file), "earlier checkpoints are unchanged")
    for number, old in reversed(list(enumerate(list_files(directory), start=1))):
        if number < keep:
            os.replace(old, directory / f"checkpoint.{number}.pt")
    os.replace(temporary, path)
    for surplus in list_files(directory)[keep:]:
        surplus.unlink()
    return path


def read_newest(directory: Path) -> tuple[Path, dict[str, Any]]:
    """Return the path and content of the newest undamaged checkpoint, with tensors on the CPU.

    Damaged files are skipped with a warning. Only tensors and plain values are unpickled.

    Raises:
        FileNotFoundError: There is no checkpoint.
        CheckpointError: All files are damaged, or the newest undamaged one has another format or version.
    """
    paths = list_files(directory)
    if not paths:
        raise FileNotFoundError(
            f"no checkpoint at {directory / FILE_NAME}; write one with QMIX.learn(checkpoint_dir=...) or QMIX.save"
        )
    damage: list[CheckpointError] = []
    for path in paths:
        try:
            content = _unpickle(path)
        except CheckpointError as error:
            damage.append(error)
            continue
        if damage:
            warnings.warn(f"{damage[0]}; loading the checkpoint before it instead, {path}", stacklevel=4)
        _check_version(path, content)
        return path, content
    others = f", and {len(paths) - 1} older ones are damaged, too" if len(paths) > 1 else ""
    raise CheckpointError(f"{damage[0]}{others}; delete {directory} to start again") from damage[0]


def _unpickle(path: Path) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            if sum(part.file_size for part in parts) > path.stat().st_size or any(part.compress_type for part in parts):
                raise ValueError("compressed or overlapping parts, which could need any amount of memory")
            if archive.testzip() is not None:  # torch.load does not verify the checksums
                raise ValueError("wrong checksum")
            if any(b"bytearray" in archive.read(part) for part in parts if part.filename.endswith(".pkl")):
                raise ValueError("a buffer, which could have any size")
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not _is_stored(content):
            raise ValueError("a tensor with more values than are stored")
        return content
    except Exception as error:  # torch and zipfile raise many exception types for a damaged file
        raise CheckpointError(f"cannot read {path}: it is damaged, truncated, or not a {FORMAT} checkpoint") from error


def _is_stored(value: Any) -> bool:
    """Return whether all tensors of a nested value have their own values in the file."""
    if isinstance(value, torch.Tensor):
        dense = value.layout == torch.strided and value.device.type == "cpu"
        return dense and value.nbytes <= value.untyped_storage().nbytes()
    if isinstance(value, dict):
        return all(map(_is_stored, value.values()))
    return not isinstance(value, (list, tuple)) or all(map(_is_stored, value))


def _check_version(path: Path, content: Any) -> None:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a {FORMAT} checkpoint")
    if content.get("version") != VERSION:
        raise CheckpointError(
            f"{path} has checkpoint version {content.get('version')}, but this release of {FORMAT} reads version "
            f"{VERSION}; load it with the release that wrote it"
        )


def encode(value: Any, name: str = "the environment's state_dict()") -> Any:
    """Return a copy of a nested value in a form that `read_newest` accepts.

    NumPy arrays become tensors in a marker dict, and NumPy scalars become Python numbers; `decode` reverses the former.

    Args:
        value: Numbers, strings, arrays, tensors, and lists, tuples and dicts of them.
        name: How error messages name the value.

    Raises:
        TypeError: The value contains an object of another type.
    """
    if isinstance(value, np.ndarray) and value.dtype != object:
        return {_ARRAY_KEY: torch.tensor(value)}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: encode(item, f"{name}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([encode(item, f"{name}[{index}]") for index, item in enumerate(value)])
    if isinstance(value, _PLAIN_TYPES):
        return value
    raise TypeError(
        f"{name} is a {type(value).__name__}, which a checkpoint cannot hold; use numbers, strings, lists, tuples, "
        "dicts, arrays or tensors"
    )


def decode(value: Any) -> Any:
    """Return the value that `encode` encoded."""
    if isinstance(value, dict):
        if set(value) == {_ARRAY_KEY}:
            return value[_ARRAY_KEY].numpy()
        return {key: decode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([decode(item) for item in value])
    return value
