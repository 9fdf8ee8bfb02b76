"""Networks with trained weights: from a file, from the user's cache, or trained once and cached."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from ..common.files import cache_dir
from ..common.locks import hold, release
from ..common.settings import checked
from ..common.tensor_files import DamagedFileError, load_tensors, save_tensors
from ..common.torch_files import read_torch
from ..common.warn import warn
from ..data import DataSplits, as_splits
from ..deploy.import_network import check_spec, import_network
from ..deploy.model_library import library_normalisation, library_of
from ..networks.registry import create, image_size, list_networks, network_entry
from .fit import FitConfig, RunOptions, fit

WRAPPERS = ("module.", "_orig_mod.")
"""What `DataParallel` and `torch.compile` put before the names of tensors."""


def with_network_normalisation(network: str, data: DataSplits) -> DataSplits:
    """Return the splits with the normalisation of a network, if it is known for as many channels.

    A normalisation that was given with the data stays.

    Raises:
        ImportError: The package of the network is not installed.
    """
    constants = network_normalisation(network)
    if data.normalisation_given or constants is None or len(constants[0]) != data.image_shape[0]:
        return data
    return data.with_normalisation(*constants)


def network_normalisation(network: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return mean and standard deviation that a network was trained with, or None if they are not known.

    Raises:
        ImportError: The package of the network is not installed.
    """
    if network in list_networks():
        return network_entry(network).normalisation
    return library_normalisation(network) if library_of(network) else None


def pretrained(
    network: str,
    data: str | Path | DataSplits,
    weights: str | Path | None = None,
    *,
    recipe: FitConfig | None = None,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> nn.Module:
    """Return a network with trained weights.

    Args:
        network: A registered name; FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION, which makes the network; or
            torchvision:NAME or timm:NAME.
        data: The data set, or a name or folder that `load` takes.
        weights: A file that `load_weights` reads. Without a file, those of a registered network come from the user's
            cache; if they are not there, the network is trained and cached. The cache is keyed by network, recipe and
            data; a damaged file is made again. A network that FUNCTION makes keeps its weights, and torchvision and
            timm download theirs.
        recipe: How to train; by default the recipe of the network.
        device: Device to train on.
        progress: Whether to show a progress bar.

    Returns:
        The network, in eval mode on the CPU.

    Raises:
        ValueError: Images, classes or weights do not fit the network.
        FileNotFoundError: The weights file does not exist.
        IsADirectoryError: `weights` is a folder.
    """
    file = check_names(network, weights)
    splits = with_network_normalisation(network, as_splits(data))
    channels, height, width = splits.image_shape
    if network not in list_networks():
        return _imported(network, splits, file)
    model = create(network, len(splits.classes), channels).eval()
    if (height, width) != image_size(network):
        expected = image_size(network)
        raise ValueError(
            f"network {network!r} takes images of {expected[1]}x{expected[0]} pixels, data {splits.name!r} has "
            f"{width}x{height}; choose another network or resize the images"
        )
    if file is not None:
        load_weights(model, file)
        return model
    recipe = recipe or FitConfig(**network_entry(network).recipe)
    selects = "select_best" if recipe.select_best else ""  # not in the recipe's repr
    key = hashlib.blake2b(f"{recipe}{splits.fingerprint}{selects}".encode(), digest_size=8).hexdigest()
    cached = cache_dir() / "pretrained" / f"{network}-{splits.name}-{key}.safetensors"
    lock = cached.with_suffix(".lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    hold(lock, wait=True)  # of several processes that need the network, one trains it
    try:
        if cached.is_file():
            try:
                _fill(model, load_tensors(cached), cached)
                return model
            except DamagedFileError as error:
                warn(f"{error}; the network is trained again")
        checkpoint = cached.with_suffix(".checkpoint")
        title = f"training {network} on {splits.name}"
        model = fit(model, splits, recipe, run=RunOptions(device, checkpoint, progress, title))
        save_tensors(cached, {name: tensor.contiguous() for name, tensor in model.state_dict().items()})
        checkpoint.unlink(missing_ok=True)
    finally:
        release(lock)
    return model


def check_names(network: str, weights: str | Path | None) -> Path | None:
    """Check a network and a file of weights by their names, before data are loaded, and return the file.

    Raises:
        ImportError: The package of the network is not installed.
        ValueError: No network has this name.
        FileNotFoundError: The weights file, or the file of the network, does not exist.
        IsADirectoryError: `weights` is a folder.
    """
    if network not in list_networks():
        check_spec(network)
    file: Path | None = checked("weights", weights, Path | None)
    if file is not None:
        check_weights_file(file)
    return file


def _imported(network: str, data: DataSplits, weights: Path | None) -> nn.Module:
    """Return a network that is not registered, in eval mode on the CPU.

    Raises:
        ValueError: It cannot be made, or the weights do not fit.
    """
    model = import_network(network, len(data.classes), pretrained=weights is None).cpu().eval()
    if weights is not None:
        load_weights(model, weights)
    return model


def check_weights_file(file: Path) -> None:
    """Check that a file of weights exists.

    Raises:
        FileNotFoundError: The file does not exist.
        IsADirectoryError: `file` is a folder.
    """
    if file.is_dir():
        raise IsADirectoryError(f"weights {file} are a folder; give the file in it (load_pruned reads pruned networks)")
    if not file.is_file():
        raise FileNotFoundError(f"weights file {file} does not exist")


def load_weights(model: nn.Module, file: Path) -> None:
    """Load a state dict into a network.

    Args:
        model: The network; every tensor of its state must be in the file.
        file: A .safetensors file, or a torch file with a state dict (bare or under 'state_dict'). Prefixes that
            `DataParallel` and `torch.compile` add to names do not count.

    Raises:
        ValueError: The file is not a state dict, or does not fit the network; the message names the first tensor that
            does not fit.
        FileNotFoundError: The file does not exist.
        IsADirectoryError: `file` is a folder.
    """
    state, own = _read_state(file), list(model.state_dict())
    for theirs in _without_wrappers(list(state)):
        for mine in _without_wrappers(own):
            if set(theirs) == set(mine):
                places = dict(zip(mine, own, strict=True))
                _fill(model, {places[name]: one for name, one in zip(theirs, state.values(), strict=True)}, file)
                return
    _fill(model, dict(zip(theirs, state.values(), strict=True)), file)  # names what does not fit


def _without_wrappers(names: list[str]) -> list[list[str]]:
    """Return names as they are, and without one more prefix of a wrapper each, as long as all of them have it."""
    variants = [names]
    while prefix := next((one for one in WRAPPERS if names and all(name.startswith(one) for name in names)), None):
        names = [name.removeprefix(prefix) for name in names]
        variants.append(names)
    return variants


def _fill(model: nn.Module, state: Mapping[str, torch.Tensor], file: Path) -> None:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"weights file {file} does not fit the network: {_first_misfit(model.state_dict(), state)}"
        ) from error


def _read_state(file: Path) -> dict[str, torch.Tensor]:
    check_weights_file(file)
    try:
        state: Any
        if file.suffix == ".safetensors":
            state = load_file(file)
        else:
            with file.open("rb") as stream:
                state = read_torch(stream)
    except Exception as error:  # safetensors raises several types, too
        raise ValueError(
            f"weights file {file} cannot be read as a state dict ({type(error).__name__}); write one by "
            "torch.save(model.state_dict(), file) or safetensors"
        ) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        entries = f"; it has the entries {', '.join(map(str, state))}" if isinstance(state, dict) else ""
        raise ValueError(
            f"weights file {file} contains no state dict of tensors{entries}; write one by "
            "torch.save(model.state_dict(), file)"
        )
    return state


def _first_misfit(expected: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor]) -> str:
    """Describe the first tensor that does not fit, and say how many more there are."""
    common = [name for name in expected if name in given and expected[name].shape != given[name].shape]
    faults = [f"{name} is {tuple(given[name].shape)} instead of {tuple(expected[name].shape)}" for name in common]
    remedy = "; if the weights are those of a pruned network, load its folder with load_pruned" if faults else ""
    faults += [f"{name} is missing" for name in expected if name not in given]
    faults += [f"{name} is not a tensor of this network" for name in given if name not in expected]
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return faults[0] + more + remedy
