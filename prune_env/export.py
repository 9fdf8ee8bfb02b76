"""A pruned network on disk: weights as safetensors, structure and everything known about it as JSON. No pickles.

pruned.json holds the filters that stay, layer by layer, so a saved network depends on no ranking being computed again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from .data import DataSplits
from .files import replacing
from .networks.registry import NETWORKS, create, image_size
from .pruning import Plan, PruningGroup, build_from_indices, find_groups, kept_indices
from .pruning.surgery import channels

FORMAT_VERSION = 1
WEIGHTS, RECORD = "pruned.safetensors", "pruned.json"


def save_pruned(
    directory: str | Path,
    model: nn.Module,
    plan: Plan,
    *,
    groups: Sequence[PruningGroup],
    ranking: Mapping[str, torch.Tensor],
    data: DataSplits,
    network: str | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> None:
    """Writes `pruned.safetensors` and `pruned.json` into `directory`; each file appears whole or not at all.

    model    the pruned network, as `build` made it from `plan`, fine-tuned or not
    network  its name in the registry; None for a user's own, which `load_pruned` then needs as `base_model`
    metrics  numbers to keep with it
    Raises ValueError for a model that is not the plan's, or a metric that is not finite; nothing is written then.
    """
    directory = Path(directory)
    kept = kept_indices(groups, ranking, plan)
    for group, filters in zip(groups, plan, strict=True):
        found = channels(model.get_submodule(group.layers[0]), "out")
        if found != filters:
            raise ValueError(
                f"the model is not the plan's: layer {group.layers[0]} has {found} filters, the plan keeps {filters}"
            )
    weights = _weights(model)
    record = {
        "format_version": FORMAT_VERSION,
        "network": {"name": network, "num_classes": len(data.classes), "in_channels": data.image_shape[0]},
        "data": {"name": data.name, "classes": data.classes, "image_shape": data.image_shape, "digest": data.digest},
        "normalisation": {"mean": data.mean, "std": data.std},
        "plan": {group.agent_id: int(filters) for group, filters in zip(groups, plan, strict=True)},
        "kept_filters": [
            {"layers": group.layers, "filters": group.filters, "kept": kept[group.agent_id].tolist()}
            for group in groups
        ],
        "weights_digest": _digest(weights),
        "metrics": dict(metrics or {}),
    }
    text = json.dumps(record, indent=1, allow_nan=False) + "\n"  # before anything is written
    with replacing(directory / WEIGHTS) as temporary:
        temporary.write_bytes(weights)
    with replacing(directory / RECORD) as temporary:
        temporary.write_text(text, encoding="utf-8")


def file_bytes(model: nn.Module) -> int:
    """Size of the network's weights on disk, as safetensors."""
    return len(_weights(model))


def read_record(directory: str | Path) -> dict[str, Any]:
    """What `pruned.json` says. Raises FileNotFoundError, or ValueError for a broken file or another version."""
    file = Path(directory) / RECORD
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; a saved network is a folder with {RECORD} and {WEIGHTS}")
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    version = record.get("format_version") if isinstance(record, dict) else None
    if version != FORMAT_VERSION:
        raise ValueError(f"{file} has format version {version}; this release reads version {FORMAT_VERSION}")
    missing = {"network", "data", "normalisation", "plan", "kept_filters", "weights_digest", "metrics"} - set(record)
    if missing:
        raise ValueError(f"{file} lacks {', '.join(sorted(missing))}; it was not written by save_pruned, or was edited")
    return record


def load_pruned(directory: str | Path, base_model: nn.Module | None = None) -> nn.Module:
    """The saved network, in eval mode on the CPU.

    base_model  the unpruned network, for one that is not in the registry; only its structure matters
    Raises FileNotFoundError for a missing file, ValueError for a damaged one or a base that does not fit.
    """
    directory = Path(directory)
    record = read_record(directory)
    file = directory / WEIGHTS
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; {RECORD} describes it")
    weights = file.read_bytes()
    if _digest(weights) != record["weights_digest"]:
        raise ValueError(f"{file} is truncated or belongs to another run: its digest is not the one in {RECORD}")
    base = base_model if base_model is not None else _registered(record, directory)
    channels, height, width = record["data"]["image_shape"]
    by_layers = {group.layers: group for group in find_groups(base, torch.zeros(2, channels, height, width))}
    groups, kept = [], {}
    for entry in record["kept_filters"]:
        group = by_layers.get(tuple(entry["layers"]))
        if group is None or group.filters != entry["filters"]:
            found = "is no pruning group of the base network" if group is None else f"has {group.filters} filters in it"
            raise ValueError(
                f"{directory / RECORD} does not fit the base network: the group of layers {', '.join(entry['layers'])} "
                f"({entry['filters']} filters) {found}; pass the network that was pruned as base_model"
            )
        groups.append(group)
        kept[group.agent_id] = torch.tensor(entry["kept"])
    network = build_from_indices(base, groups, kept)
    try:
        network.load_state_dict(load(weights))
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"{file} does not fit the network described by {RECORD}: {error}") from error
    return network.eval()


def _registered(record: dict[str, Any], directory: Path) -> nn.Module:
    network = record["network"]
    if network["name"] not in NETWORKS:
        raise ValueError(
            f"{directory / RECORD} holds network {network['name']!r}, which is not in the registry; pass the unpruned "
            "network as base_model"
        )
    expected, size = image_size(network["name"]), tuple(record["data"]["image_shape"][1:])
    if size != expected:
        raise ValueError(
            f"{directory / RECORD}: network {network['name']!r} takes {expected} pixels, record says {size}"
        )
    return create(network["name"], network["num_classes"], network["in_channels"])


def _weights(model: nn.Module) -> bytes:
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()})


def _digest(weights: bytes) -> str:
    return hashlib.blake2b(weights, digest_size=16).hexdigest()
