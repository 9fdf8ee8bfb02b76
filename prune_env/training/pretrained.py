"""A trained network: from a file, from the user's cache, or trained once and cached."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ..common.files import cache_dir, replacing
from ..data import DataSplits, as_splits
from ..networks.registry import create, image_size, network_entry
from .fit import FitConfig, fit


def with_network_normalisation(network: str, data: DataSplits) -> DataSplits:
    """Return the splits with the normalisation of a registered network, if it has one for as many channels.

    Raises:
        ValueError: No network has this name.
    """
    constants = network_entry(network).normalisation
    if constants is None or len(constants[0]) != data.image_shape[0]:
        return data
    return data.with_normalisation(*constants)


def pretrained(
    network: str,
    data: str | Path | DataSplits,
    weights: str | Path | None = None,
    *,
    recipe: FitConfig | None = None,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> nn.Module:
    """A registered network, trained, in eval mode on the CPU.

    weights  a .safetensors file or a torch file with a state dict (bare, or under 'state_dict'; a 'module.' prefix is
             dropped). Without it, the user's cache is asked; on a miss the network is trained by `recipe` and cached,
             keyed by network, recipe and a digest of the data.
    Raises ValueError where images, classes or weights do not fit the network, FileNotFoundError for a missing file,
    IsADirectoryError for a folder in its place.
    """
    splits = with_network_normalisation(network, as_splits(data))
    channels, height, width = splits.image_shape
    model = create(network, len(splits.classes), channels).eval()
    if (height, width) != image_size(network):
        expected = image_size(network)
        raise ValueError(
            f"network {network!r} takes images of {expected[1]}x{expected[0]} pixels, data {splits.name!r} has "
            f"{width}x{height}; choose another network or resize the images"
        )
    if weights is not None:
        load_weights(model, Path(weights))
        return model
    recipe = recipe or FitConfig(**network_entry(network).recipe)
    key = hashlib.blake2b(f"{recipe}{splits.fingerprint}".encode(), digest_size=8).hexdigest()
    cached = cache_dir() / "pretrained" / f"{network}-{splits.name}-{key}.safetensors"
    if cached.is_file():
        load_weights(model, cached)
        return model
    checkpoint = cached.with_suffix(".checkpoint")
    model = fit(
        model,
        splits,
        recipe,
        checkpoint=checkpoint,
        device=device,
        progress=progress,
        title=f"training {network} on {splits.name}",
    )
    with replacing(cached) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, temporary)
    checkpoint.unlink(missing_ok=True)
    return model


def load_weights(model: nn.Module, file: Path) -> None:
    """Loads a state dict strictly. Raises as `pretrained` does, and names what does not fit."""
    if file.is_dir():
        raise IsADirectoryError(f"weights {file} are a folder; give the file in it (load_pruned reads pruned networks)")
    if not file.is_file():
        raise FileNotFoundError(f"weights file {file} does not exist")
    try:
        state: Any
        if file.suffix == ".safetensors":
            state = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's unpickler raises what it likes on foreign bytes: IndexError, EOFError, ...
        # What torch says of it is long, and how to read files that run code.
        raise ValueError(
            f"weights file {file} cannot be read as a state dict ({type(error).__name__}); write one by "
            "torch.save(model.state_dict(), file) or safetensors"
        ) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"weights file {file} holds no state dict of tensors")
    state = {name.removeprefix("module."): value for name, value in state.items()}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"weights file {file} does not fit the network: {_misfit(model.state_dict(), state)}"
        ) from error


def _misfit(wanted: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor]) -> str:
    """The first of the faults, and how many more there are."""
    common = [name for name in wanted if name in given and wanted[name].shape != given[name].shape]
    faults = [f"{name} is {tuple(given[name].shape)} in place of {tuple(wanted[name].shape)}" for name in common]
    remedy = "; if they are of a pruned network, load_pruned reads its folder" if faults else ""
    faults += [f"{name} is missing" for name in wanted if name not in given]
    faults += [f"{name} is not of this network" for name in given if name not in wanted]
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return faults[0] + more + remedy
