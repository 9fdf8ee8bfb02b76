"""All tensors of a network as one safetensors file, also the buffers that its state dict leaves out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from .record import RECORD


def file_bytes(model: nn.Module) -> int:
    """Return the number of bytes of a network's weights as a safetensors file."""
    return len(to_bytes(model))


def _other_buffers(network: nn.Module) -> dict[str, torch.Tensor | None]:
    """Return the buffers that are not part of the state dict (`persistent=False`) by their names."""
    return {
        f"{path}.{name}" if path else name: module._buffers.get(name)
        for path, module in network.named_modules()
        for name in sorted(module._non_persistent_buffers_set)
    }


def without_buffers(
    network: nn.Module, tensors: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Separate the tensors of a file into those of a network's state dict and its other buffers."""
    others = _other_buffers(network)
    state = {name: tensor for name, tensor in tensors.items() if name not in others}
    return state, {name: tensor for name, tensor in tensors.items() if name in others}


def to_bytes(model: nn.Module) -> bytes:
    """Return all tensors as safetensors; they are copied, because safetensors refuses tensors that share memory."""
    others = {name: buffer for name, buffer in _other_buffers(model).items() if buffer is not None}
    state = {**model.state_dict(), **others}
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise ValueError(
                f"{name} in the model's state is a {type(value).__name__}, not a tensor; it cannot be saved"
            )
    return save({name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.items()})


def read_weights(file: Path, digest: str) -> dict[str, torch.Tensor]:
    """Read the tensors of a saved network.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, or not the one of the record.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist, although there is a {RECORD}")
    try:
        weights = file.read_bytes()
    except MemoryError:
        raise ValueError(f"{file} has {file.stat().st_size} bytes, more than the memory holds") from None
    if digest_of(weights) != digest:
        raise ValueError(f"{file} is truncated or belongs to another run: its digest is not the one in {RECORD}")
    try:
        return load(weights)
    except SafetensorError as error:
        raise ValueError(f"{file} is not a safetensors file: {error}; save the network again") from error


def digest_of(weights: bytes) -> str:
    """Return the digest that a record holds of its weights."""
    return hashlib.blake2b(weights, digest_size=16).hexdigest()
