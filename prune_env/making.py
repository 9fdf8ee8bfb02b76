"""From names to an environment: loads the data, loads or trains the network, and wires them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .config import EnvConfig, EvaluatorKind
from .data import DataSplits, load
from .env import FilterPruneEnv
from .networks.pretrained import normalised_for, pretrained


def make_env(
    network: str,
    data: str | Path | DataSplits = "digits",
    weights: str | Path | None = None,
    *,
    render_mode: str | None = None,
    device: torch.device | str = "cpu",
    cache: str | Path | None = None,
    evaluator: EvaluatorKind = "local",
    workers: int | None = None,
    progress: bool = True,
    **config: Any,
) -> FilterPruneEnv:
    """The environment of a registered network.

    cache, evaluator, workers   see `FilterPruneEnv`
    config  fields of `EnvConfig`
    """
    settings = EnvConfig(**config)  # wrong settings are told before minutes of training
    splits = normalised_for(network, data if isinstance(data, DataSplits) else load(data))
    model = pretrained(network, splits, weights, device=device, progress=progress)
    return FilterPruneEnv(
        model,
        splits,
        settings,
        render_mode=render_mode,
        device=device,
        cache=cache,
        evaluator=evaluator,
        workers=workers,
    )
