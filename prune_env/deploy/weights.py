"""All tensors of a network as one safetensors file, also the buffers that its state dict leaves out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from ..pruning.modules import spec_of
from .record import RECORD


def file_bytes(model: nn.Module) -> int:
    """Return the number of bytes of a network's weights as a safetensors file."""
    return len(to_bytes(model))


def split_state(
    network: nn.Module, tensors: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Separate the tensors of a file into those of a network's state dict and its other buffers.

    Raises:
        ValueError: A buffer has another shape or kind of numbers than the network's.
    """
    others = _other_buffers(network)
    for name, own in others.items():
        found = tensors.get(name)
        if own is None or found is None:  # buffers may be made by the first forward pass
            continue
        if own.shape != found.shape or own.is_floating_point() != found.is_floating_point():
            raise ValueError(
                f"buffer {name} is {tuple(own.shape)} {own.dtype}, of the saved network {tuple(found.shape)} "
                f"{found.dtype}"
            )
    state = {name: tensor for name, tensor in tensors.items() if name not in others}
    return state, {name: tensor for name, tensor in tensors.items() if name in others}


def all_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the state dict of a network and its other buffers.

    Raises:
        ValueError: A value is no tensor that can be saved; the message names it.
    """
    others = {name: buffer for name, buffer in _other_buffers(model).items() if buffer is not None}
    tensors: dict[str, torch.Tensor] = {**model.state_dict(), **others}
    for name, value in tensors.items():
        if not isinstance(value, torch.Tensor):
            raise ValueError(
                f"{name} in the model's state is a {type(value).__name__}, not a tensor; it cannot be saved"
            )
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise ValueError(f"{name} in the model is a tensor without plain values ({value.layout}, {value.device})")
    return tensors


def to_bytes(model: nn.Module) -> bytes:
    """Return all tensors as safetensors; they are copied, because safetensors refuses tensors that share memory.

    Raises:
        ValueError: A value cannot be saved.
    """
    return save({name: one.detach().to("cpu", copy=True).contiguous() for name, one in all_tensors(model).items()})


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


def _other_buffers(network: nn.Module) -> dict[str, torch.Tensor | None]:
    """Return the buffers outside the state dict (`persistent=False`) by their names.

    Those that pruning cuts are left out: they follow from the channels that remain.
    """
    buffers: dict[str, torch.Tensor | None] = {}
    for path, module in network.named_modules():
        spec = spec_of(module)
        for name in sorted(module._non_persistent_buffers_set - set(spec.tensor_names if spec else ())):
            buffers[f"{path}.{name}" if path else name] = module._buffers.get(name)
    return buffers
