"""Fingerprints: short hashes that identify weights and functions, so that results of different ones never mix."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import is_dataclass
from functools import partial
from typing import Any

import torch
from torch import nn


def weights_fingerprint(model: nn.Module) -> str:
    """Return a hash of all parameters and buffers, with their names, shapes and types, and of the chosen output."""
    digest = hashlib.blake2b(digest_size=16)
    chosen = getattr(model, "_chosen_output", None)  # see `prune_env.common.outputs`
    if chosen is not None:
        digest.update((function_fingerprint(chosen) if callable(chosen) else repr(chosen)).encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def function_fingerprint(function: Callable[..., Any]) -> str:
    """Return the qualified name of a function and a hash of its code, bound arguments and plain closure values.

    The fields of a callable dataclass are included. Globals and other attributes that the function reads are not. A
    callable object may have an attribute `fingerprint`, a string that identifies its settings; this string then
    replaces the hash.
    """
    bound = ""
    while isinstance(function, partial):
        bound += f" {function.args!r} {sorted(function.keywords.items())!r}"
        function = function.func
    name = f"{qualified_name(function)}{bound}"
    settings = getattr(function, "fingerprint", None)
    if isinstance(settings, str):
        return f"{name} {settings}"
    code = getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
    parts: list[Any] = []
    if code is not None:
        constants = [constant for constant in code.co_consts if isinstance(constant, (int, float, str, bytes))]
        parts = [code.co_code, code.co_names, constants]
    cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    parts += [value for value in cells if isinstance(value, (int, float, str, bytes))]
    if is_dataclass(function):
        parts.append(repr(function))
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()
    return f"{name} {digest}"


def qualified_name(function: Callable[..., Any]) -> str:
    """Return module and name of a function, or of the class of a callable object."""
    while isinstance(function, partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"
