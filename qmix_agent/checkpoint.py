"""One file that holds a whole agent, either there entirely or not at all; and the few before it."""

from __future__ import annotations

import os
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

FILE_NAME = "checkpoint.pt"
FORMAT = "qmix_agent"
VERSION = 3

_PLAIN = (bool, int, float, str, bytes, type(None))
_ARRAY = "__ndarray__"
_OLDER = re.compile(r"checkpoint\.(\d+)\.pt")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: damaged, of another version, or of another environment."""


def files(directory: Path) -> list[Path]:
    """The checkpoints there, newest first."""
    older = [(int(match[1]), path) for path in directory.glob("*.pt") if (match := _OLDER.fullmatch(path.name))]
    newest = [directory / FILE_NAME] if (directory / FILE_NAME).is_file() else []
    return newest + [path for _, path in sorted(older)]


def write(directory: Path, content: dict[str, Any], keep: int) -> Path:
    """Writes and syncs a temporary file, then moves the files before it on and puts it in its place.

    Whenever it is stopped, whole files are there. Raises OSError, and leaves all as it was, when it cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path, temporary = directory / FILE_NAME, directory / f".{FILE_NAME}.writing"
    try:
        with temporary.open("wb") as file:
            torch.save({"format": FORMAT, "version": VERSION, **content}, file)
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        cause = error.__context__ if isinstance(error, RuntimeError) else error  # torch's writer hides the file's error
        if not isinstance(cause, OSError):
            raise
        message = f"{path} cannot be written ({cause.strerror or cause}); the checkpoints before it are untouched"
        raise OSError(cause.errno, message) from error
    for number, old in reversed(list(enumerate(files(directory), start=1))):
        if number < keep:
            os.replace(old, directory / f"checkpoint.{number}.pt")
    os.replace(temporary, path)
    for surplus in files(directory)[keep:]:
        surplus.unlink()
    return path


def read_newest(directory: Path) -> tuple[Path, dict[str, Any]]:
    """The newest whole file and its content, on the CPU; nothing but tensors and plain values is unpickled.

    A damaged file is passed over with a warning. Raises FileNotFoundError, or CheckpointError when all are damaged or
    the newest whole one is of another version.
    """
    found = files(directory)
    if not found:
        raise FileNotFoundError(
            f"no checkpoint at {directory / FILE_NAME}; QMIX.learn(checkpoint_dir=...) or QMIX.save writes one"
        )
    damage: list[CheckpointError] = []
    for path in found:
        try:
            content = _unpickled(path)
        except CheckpointError as error:
            damage.append(error)
            continue
        if damage:
            warnings.warn(f"{damage[0]}; going on from the one before it, {path}", stacklevel=3)
        return path, _checked(path, content)
    raise damage[0]


def _unpickled(path: Path) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:  # torch.load itself does not look at the checksums
                raise ValueError("a checksum is wrong")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and zipfile raise half a dozen types for a damaged file
        raise CheckpointError(
            f"{path} cannot be read; it is damaged, cut short, or not a checkpoint of {FORMAT}"
        ) from error


def _checked(path: Path, content: Any) -> dict[str, Any]:
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
