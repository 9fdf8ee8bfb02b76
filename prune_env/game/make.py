"""Make an environment from names: load the data, load or train the network, create the problem."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from ..common.expect import expect, expect_fields
from ..data import DataSplits, as_splits
from ..evaluation.resources import Resources
from ..training.pretrained import check_names, pretrained, with_network_normalisation
from .config import EnvConfig
from .env import FilterPruneEnv
from .validation import check_rules


def make_env(
    network: str,
    data: str | Path | DataSplits = "digits",
    weights: str | Path | None = None,
    *,
    render_mode: str | None = None,
    progress: bool = True,
    **settings: Any,
) -> FilterPruneEnv:
    """Make the environment of a network by its name.

    Args:
        network: A registered name, see `prune_env.networks.list_networks`; FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION,
            which makes the network; or torchvision:NAME or timm:NAME.
        data: digits, cifar10, cifar100, an image folder, or splits.
        weights: A file with trained weights. Without it the network is trained once and cached.
        render_mode: ansi, rgb_array or None.
        progress: Show progress while training.
        **settings: Fields of `EnvConfig` (target_macs, rounds, ...) and of `Resources` (device, backend, workers,
            cache).

    Raises:
        TypeError: A setting is unknown, or an argument has another type.
        ValueError: A setting is not allowed, or network, data and weights do not fit together.
        DataError: The data are missing or damaged.

    Example:
        >>> env = make_env("resnet20", "cifar10", target_macs=0.5, device="cuda")
    """
    expect(network, str, "network must be a registered name", "for your own network use FilterPruneEnv.from_model")
    config, resources = split_settings(settings)
    check_names(network, weights)
    check_rules(config, None, render_mode)  # before data are loaded and a network is trained
    splits = with_network_normalisation(network, as_splits(data))
    model = pretrained(network, splits, weights, device=resources.device, progress=progress)
    return FilterPruneEnv.from_model(model, splits, config, render_mode=render_mode, resources=resources)


def split_settings(settings: dict[str, Any]) -> tuple[EnvConfig, Resources]:
    """Split flat settings into an `EnvConfig` and `Resources`.

    Raises:
        TypeError: A setting belongs to neither; the message suggests a similar name.
    """
    expect_fields(settings, "make_env", EnvConfig, Resources)
    names = {field.name for field in fields(Resources)}
    resources = {name: settings[name] for name in settings.keys() & names}
    config = {name: settings[name] for name in settings.keys() - names}
    return EnvConfig(**config), Resources(**resources)
