"""The record of a saved network, pruned.json: its format, and how it is read and written."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FORMAT_VERSION = 2
WEIGHTS, RECORD = "pruned.safetensors", "pruned.json"
"""Names of the two files of a saved network."""
RECORD_LIMIT = 64 * 2**20
"""Largest size of pruned.json in bytes; that of ResNet-152 has less than a hundredth of it."""
IMAGE_LIMIT = 2**25
"""Largest number of values in one image of a record."""

_TEXT_OR_NONE, _NUMBER = (str, type(None)), (int, float)
_SCHEMA: dict[str, Any] = {
    "network": {"name": _TEXT_OR_NONE, "base": _TEXT_OR_NONE, "num_classes": int, "in_channels": int},
    "modules": {str: str},
    "data": {"name": str, "classes": [str], "image_shape": [int, int, int], "digest": str},
    "normalisation": {"mean": [_NUMBER], "std": [_NUMBER]},
    "plan": {str: int},
    "kept_channels": [{"module": str, "side": str, "of": int, "kept": [int]}],
    "weights_digest": str,
    "metrics": {},
    "digest": str,
}
"""Types in pruned.json: {name: ...} has at least these keys, {str: ...} any keys, [x] any number of x, [x, x] two."""


def read_record(directory: str | Path) -> dict[str, Any]:
    """Read and check the record of a saved network.

    Args:
        directory: The folder that `save_pruned` wrote.

    Returns:
        The contents of pruned.json.

    Raises:
        FileNotFoundError: The folder or its pruned.json does not exist.
        NotADirectoryError: `directory` is a file.
        ValueError: The file is damaged, of another version, or not in the format.
    """
    directory = Path(directory)
    file = directory / RECORD
    if directory.is_file():
        raise NotADirectoryError(f"{directory} is a file; give the folder that contains {RECORD} and {WEIGHTS}")
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; a saved network is a folder with {RECORD} and {WEIGHTS}")
    if (size := file.stat().st_size) > RECORD_LIMIT:
        raise ValueError(f"{file} has {size} bytes, a record has at most {RECORD_LIMIT}; save the network again")
    try:
        record = json.loads(
            file.read_text(encoding="utf-8"), object_pairs_hook=_unique_keys, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not valid JSON: {error}; save the network again") from error
    version = record.get("format_version") if isinstance(record, dict) else None
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{file} has format version {version}, this release reads version {FORMAT_VERSION}; load it with the "
            "release that wrote it, or save the network again"
        )
    try:
        _check_types(record, _SCHEMA, "")
        _check_values(record)
    except ValueError as error:
        raise ValueError(f"{file} {error}; it was edited, or not written by save_pruned") from error
    if record["digest"] != _digest(record):
        raise ValueError(
            f"{file} was damaged or edited: its contents do not have the digest that was stored with them; save the "
            "network again"
        )
    return record


def to_json(record: Mapping[str, Any]) -> str:
    """Return a record as indented JSON, with its digest, and with lists of whole numbers on one line.

    Raises:
        ValueError: A metric cannot be written as JSON; the message names it.
    """
    for name, value in record["metrics"].items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"metric {name!r} is {value!r} of type {type(value).__name__}; give finite Python numbers and text"
            ) from error
    text = json.dumps({**record, "digest": _digest(record)}, indent=1, allow_nan=False) + "\n"
    return re.sub(r"\[\n[\s\d,]+\]", lambda numbers: " ".join(numbers[0].split()), text)


def _digest(record: Mapping[str, Any]) -> str:
    """Return the digest of everything in a record except for its digest."""
    content = {name: value for name, value in record.items() if name != "digest"}
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object as a dictionary.

    Raises:
        ValueError: It has a key twice.
    """
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice in one object")
    return result


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")


def _check_values(record: Mapping[str, Any]) -> None:
    """Check the values of a record whose types are right.

    Raises:
        ValueError: A value is out of range, or two values contradict each other; the message names them.
    """
    network, shape = record["network"], record["data"]["image_shape"]
    if network["name"] is not None and network["base"] is not None:
        raise ValueError(
            f"is ambiguous: network.name is {network['name']!r} and network.base is {network['base']!r}, one must be "
            "null"
        )
    if min(shape) < 1 or math.prod(shape) > IMAGE_LIMIT or shape[0] != network["in_channels"]:
        raise ValueError(
            f"has a wrong size: data.image_shape must be network.in_channels ({network['in_channels']}), height and "
            f"width, at most {IMAGE_LIMIT} values together, got {shape}"
        )
    for name, values in record["normalisation"].items():
        if name in ("mean", "std") and (len(values) != shape[0] or (name == "std" and min(values) <= 0)):
            raise ValueError(
                f"has a wrong value: normalisation.{name} must have {shape[0]} numbers"
                f"{', all above 0' if name == 'std' else ''}, got {values!r:.60}"
            )
    sides = set()
    for number, entry in enumerate(record["kept_channels"]):
        side = (entry["module"], entry["side"])
        if entry["side"] not in ("in", "out") or side in sides:
            raise ValueError(
                f"has a wrong side: kept_channels[{number}].side must be 'in' or 'out', once for module "
                f"{entry['module']!r}, got {entry['side']!r}"
            )
        sides.add(side)


def _check_types(value: Any, expected: Any, where: str) -> None:
    """Check a value that was read from JSON against a part of the schema.

    Raises:
        ValueError: A key is missing, or a value has another type; the message names it.
    """
    kind = type(expected) if isinstance(expected, (dict, list)) else expected
    kinds: tuple[type, ...] = kind if isinstance(kind, tuple) else (kind,)
    if isinstance(value, bool) or not any(isinstance(value, kind) for kind in kinds):  # a bool is an int in Python
        names = " or ".join({"dict": "mapping", "NoneType": "null"}.get(kind.__name__, kind.__name__) for kind in kinds)
        raise ValueError(f"has a wrong type: {where} must be {names}, got {value!r:.60}")
    if isinstance(value, (int, float)) and not (0 <= value < 2**31 if kinds == (int,) else abs(value) < 1e300):
        limits = "between 0 and 2**31 - 1" if kinds == (int,) else "finite"
        raise ValueError(f"has a wrong value: {where} must be {limits}, got {value!r:.60}")
    if isinstance(expected, dict):
        if str not in expected and (missing := expected.keys() - value.keys()):
            raise ValueError(f"lacks {', '.join(sorted(f'{where}.{key}'.lstrip('.') for key in missing))}")
        pairs = [(key, expected.get(key, expected.get(str))) for key in value if key in expected or str in expected]
        for key, inner in pairs:
            _check_types(value[key], inner, f"{where}.{key}".lstrip("."))
    elif isinstance(expected, list):
        if len(expected) > 1 and len(value) != len(expected):
            raise ValueError(f"has a wrong length: {where} must have {len(expected)} values, got {value!r:.60}")
        for number, inner in enumerate(value):
            _check_types(inner, expected[0], f"{where}[{number}]")
