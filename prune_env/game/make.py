"""From names to an environment: loads the data, loads or trains the network, and wires them."""

from __future__ import annotations

from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from ..common.expect import expect
from ..data import DataSplits, as_splits
from ..evaluation.workers import EvaluatorKind
from ..training.pretrained import pretrained, with_network_normalisation
from .config import EnvConfig
from .env import FilterPruneEnv
from .tabulated import Table, TabulatedEvaluator


def make_env(
    network: str,
    data: str | Path | DataSplits = "digits",
    weights: str | Path | None = None,
    *,
    render_mode: str | None = None,
    device: torch.device | str = "cpu",
    cache: str | Path | None = None,
    evaluator: EvaluatorKind | Literal["table"] = "local",
    workers: int | None = None,
    progress: bool = True,
    **config: Any,
) -> FilterPruneEnv:
    """The environment of a registered network.

    cache, evaluator, workers   see `FilterPruneEnv`; the evaluator 'table', besides, looks up what every plan of
                                small_cnn on digits is worth, see `prune_env.evaluation.table`
    config  fields of `EnvConfig`
    Raises TypeError for an unknown setting and for arguments of other types, and what `EnvConfig`, `load`, `pretrained`
    and `FilterPruneEnv` raise.
    """
    expect(
        network, str, "network must be a registered name", "for a network of your own take FilterPruneEnv(model, data)"
    )
    if evaluator not in (kinds := (*get_args(EvaluatorKind), "table")):
        raise ValueError(f"evaluator {evaluator!r} is unknown; choose one of {', '.join(kinds)}")
    names = [field.name for field in fields(EnvConfig)]
    if unknown := [name for name in config if name not in names]:
        close = get_close_matches(unknown[0], names, 1)
        told = f"did you mean {close[0]!r}?" if close else f"choose among {', '.join(names)}"
        raise TypeError(f"make_env has no setting {unknown[0]!r}; {told}")
    table = Table.load() if evaluator == "table" else None
    settings = table.config(config, cache) if table else EnvConfig(**config)  # told before minutes of training
    splits = with_network_normalisation(network, as_splits(data))
    model = (table.pretrained if table else pretrained)(network, splits, weights, device=device, progress=progress)
    env = FilterPruneEnv(
        model,
        splits,
        settings,
        render_mode=render_mode,
        device=device,
        cache=cache,
        evaluator="local" if evaluator == "table" else evaluator,
        workers=workers,
    )
    if table:
        env.evaluator = TabulatedEvaluator(table, settings.target_macs, env.evaluator)
        env._start()
    return env
