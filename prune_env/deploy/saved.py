"""A pruned network on disk: weights as safetensors, structure and everything known about it as JSON. No pickles.

pruned.json holds the channels that stay, module by module, so a saved network depends on no ranking being computed
again, on no tracing, and on no order or names of groups.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from ..common.files import replacing
from ..data import DataSplits
from ..networks.registry import create, image_size, list_networks
from ..pruning import Member, Plan, PruningGroup, build_from_indices, channels, kept_indices
from .import_network import imported

FORMAT_VERSION = 2
WEIGHTS, RECORD = "pruned.safetensors", "pruned.json"

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
}
"""What pruned.json must hold: {name: ...} those keys at least, {str: ...} any keys, [x] any number of x, [x, x] two."""


def save_pruned(
    directory: str | Path,
    model: nn.Module,
    plan: Plan,
    *,
    groups: Sequence[PruningGroup],
    ranking: Mapping[str, torch.Tensor],
    data: DataSplits,
    network: str | None = None,
    base: str | nn.Module | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> None:
    """Writes `pruned.safetensors` and `pruned.json` into `directory`; each file appears whole or not at all.

    model    the pruned network, as `build` made it from `plan`, fine-tuned or not; tensors keep their dtype
    network  its name in the registry
    base     for a user's own network, `package.module:factory`: the unpruned one, or what makes it without arguments.
             `load_pruned` imports it, so it must be importable there. Or the unpruned network itself: it is not
             recorded, the model is checked against it. With neither `network` nor a path `load_pruned` needs
             `base_model`, and what of the model is not the plan's may be noticed only then
    metrics  numbers to keep with it
    Raises ValueError for a model that is not the plan's, a base that cannot be imported or is another network, or a
    metric that is not finite; nothing is written then.
    """
    directory = Path(directory)
    if network is not None and base is not None:
        raise ValueError(f"network {network!r} is in the registry and makes its own base; give network or base")
    sides = _kept_channels(model, groups, kept_indices(groups, ranking, plan))
    layers = {layer for group in groups for layer in group.layers}
    record: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "network": {
            "name": network,
            "base": base if isinstance(base, str) else None,
            "num_classes": _head_width(model, data),
            "in_channels": data.image_shape[0],
        },
        "modules": _classes(model),
        "data": {
            "name": data.name,
            "classes": data.classes,
            "image_shape": data.image_shape,
            "digest": data.fingerprint,
        },
        "normalisation": {"mean": data.mean, "std": data.std},
        "plan": {layer: channels(module, "out") for layer, module in model.named_modules() if layer in layers},
        "kept_channels": sides,
        "metrics": dict(metrics or {}),
    }
    unpruned = base if isinstance(base, nn.Module) else _recorded_base(record)
    if unpruned is not None:
        try:
            _check_fit(_cut(unpruned, sides), record["modules"], model.state_dict())
        except ValueError as error:
            raise ValueError(f"the model is not what the plan makes of {network or base!r}: {error}") from error
    weights = _weights(model)
    record["weights_digest"] = _digest(weights)
    text = _json(record)  # before anything is written
    with replacing(directory / WEIGHTS) as temporary:
        temporary.write_bytes(weights)
    with replacing(directory / RECORD) as temporary:
        temporary.write_text(text, encoding="utf-8")


def file_bytes(model: nn.Module) -> int:
    """Size of the network's weights on disk, as safetensors."""
    return len(_weights(model))


def read_record(directory: str | Path) -> dict[str, Any]:
    """What `pruned.json` says, checked against the format.

    Raises FileNotFoundError, NotADirectoryError for a file in place of its folder, or ValueError for a broken file,
    another version, a missing key or a value of the wrong type.
    """
    directory = Path(directory)
    file = directory / RECORD
    if directory.is_file():
        raise NotADirectoryError(f"{directory} is a file; give the folder that {RECORD} and {WEIGHTS} are in")
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; a saved network is a folder with {RECORD} and {WEIGHTS}")
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}; save the network again") from error
    version = record.get("format_version") if isinstance(record, dict) else None
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{file} has format version {version}, this release reads version {FORMAT_VERSION}; load it with the "
            "release that wrote it, or save the network again"
        )
    try:
        _check_types(record, _SCHEMA, "")
    except ValueError as error:
        raise ValueError(f"{file} {error}; it was not written by save_pruned, or was edited") from error
    return record


def load_pruned(directory: str | Path, base_model: nn.Module | None = None) -> nn.Module:
    """The saved network, in eval mode on the CPU, in the dtypes it was saved in.

    base_model  the unpruned network, for one that is neither in the registry nor saved with an import path; only its
                structure matters. It wins over what the record names
    A record with an import path imports and calls what it names: load such folders from sources you trust.
    Raises as `read_record` does, FileNotFoundError for missing weights, ValueError for damaged ones or a base that does
    not fit.
    """
    directory = Path(directory)
    record = read_record(directory)
    tensors = _read_weights(directory / WEIGHTS, record["weights_digest"])
    try:
        base = base_model if base_model is not None else _recorded_base(record)
    except ValueError as error:
        raise ValueError(f"{directory / RECORD}: {error}") from error
    if base is None:
        raise ValueError(
            f"{directory / RECORD} names no network of the registry and no import path; pass the unpruned network as "
            "base_model"
        )
    try:
        network = _cut(base, record["kept_channels"])
        _check_fit(network, record["modules"], tensors)
        for layer, filters in record["plan"].items():
            if (found := channels(network.get_submodule(layer), "out")) != filters:
                raise ValueError(f"layer {layer} has {found} filters, the plan says {filters}")
    except (ValueError, AttributeError) as error:
        raise ValueError(
            f"{directory / RECORD} does not fit the base network: {error}; pass the network that was pruned as "
            "base_model"
        ) from error
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if name in tensors:  # not for a buffer that is no part of the state
            tensor.data = tensor.data.to(tensors[name].dtype)
    network.load_state_dict(tensors)
    return network.cpu().eval()


def _recorded_base(record: Mapping[str, Any]) -> nn.Module | None:
    """The unpruned network that a record names, None if it names none. Raises ValueError where it cannot be made."""
    network = record["network"]
    name = network["name"]
    if network["base"] is not None:
        return imported(network["base"])
    if name is None:
        return None
    if name not in list_networks():
        raise ValueError(
            f"network {name!r} is not in the registry ({', '.join(list_networks())}); register it with "
            "register_network before loading, or name its base instead"
        )
    expected, size = image_size(name), tuple(record["data"]["image_shape"][1:])
    if size != expected:
        raise ValueError(f"network {name!r} takes {expected} pixels, the record says {size}")
    return create(name, network["num_classes"], network["in_channels"])


def _kept_channels(
    model: nn.Module, groups: Sequence[PruningGroup], kept: Mapping[str, torch.Tensor]
) -> list[dict[str, Any]]:
    """For every module side that a group covers: its channels in the unpruned network, and which of them stay.

    In the order of the model's modules. What no group covers stays. Raises ValueError for a model that is too small.
    """
    removed: dict[tuple[str, str], set[int]] = {}
    highest: dict[tuple[str, str], int] = {}
    for group in groups:
        goes = torch.ones(group.filters, dtype=torch.bool)
        goes[kept[group.name]] = False
        for member in group.members:
            key = (member.module, member.side)
            removed.setdefault(key, set()).update(member.index[goes].flatten().tolist())
            highest[key] = max(highest.get(key, 0), int(member.index.max()))
    modules = dict(model.named_modules())
    if absent := sorted({module for module, _ in removed} - modules.keys()):
        raise ValueError(f"the model is not the plan's: it has no module {absent[0]!r}")
    entries = []
    for module in modules:
        for side in ("out", "in"):
            if (gone := removed.get((module, side))) is None:
                continue
            found = channels(modules[module], side)
            size = found + len(gone)
            if highest[module, side] >= size:
                raise ValueError(
                    f"the model is not the plan's: {module} has {found} channels on its {side} side, the plan leaves "
                    f"at least {highest[module, side] + 1 - len(gone)}"
                )
            stays = [position for position in range(size) if position not in gone]
            entries.append({"module": module, "side": side, "of": size, "kept": stays})
    return entries


def _cut(base: nn.Module, sides: Sequence[Mapping[str, Any]]) -> nn.Module:
    """The base without the channels that do not stay: to surgery, every module side is a group of its own.

    Raises ValueError for a base with other modules or channels.
    """
    modules = dict(base.named_modules())
    groups, kept = [], {}
    for entry in sides:
        module, side, size = entry["module"], entry["side"], entry["of"]
        if module not in modules:
            raise ValueError(f"the base has no module {module!r}")
        if (found := channels(modules[module], side)) != size:
            raise ValueError(f"{module} has {found} channels on its {side} side in the base, {size} are expected")
        name = f"{module}, {side}"
        groups.append(PruningGroup(name, (module,), size, (Member(module, side, torch.arange(size)[:, None]),)))
        kept[name] = torch.tensor(entry["kept"], dtype=torch.long)
    return build_from_indices(base, groups, kept)


def _classes(model: nn.Module) -> dict[str, str]:
    """Path of every module -> name of its class."""
    return {path: type(module).__name__ for path, module in model.named_modules()}


def _check_fit(network: nn.Module, classes: Mapping[str, str], tensors: Mapping[str, torch.Tensor]) -> None:
    """Raises ValueError unless the network has modules of these classes and tensors of these shapes, and no others."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    own_classes, own_shapes = _classes(network), {name: tuple(t.shape) for name, t in network.state_dict().items()}
    comparisons: list[tuple[str, Mapping[str, Any], Mapping[str, Any]]] = [
        ("module", own_classes, classes),
        ("tensor", own_shapes, shapes),
    ]
    for kind, mine, other in comparisons:
        for name in sorted(mine.keys() | other.keys()):
            if mine.get(name) != other.get(name):
                raise ValueError(
                    f"{kind} {name or '(the network itself)'} of the base, once cut, is {mine.get(name, 'absent')}; "
                    f"of the saved network it is {other.get(name, 'absent')}"
                )


def _check_types(value: Any, expected: Any, where: str) -> None:
    """Raises ValueError unless a value read from JSON is as `_SCHEMA` says."""
    kind = type(expected) if isinstance(expected, (dict, list)) else expected
    kinds: tuple[type, ...] = kind if isinstance(kind, tuple) else (kind,)
    if isinstance(value, bool) or not any(isinstance(value, kind) for kind in kinds):  # True is an int, not a count
        names = " or ".join({"dict": "mapping", "NoneType": "null"}.get(kind.__name__, kind.__name__) for kind in kinds)
        raise ValueError(f"has a wrong type: {where} must be {names}, got {value!r:.60}")
    if isinstance(expected, dict):
        if str not in expected and (lacks := expected.keys() - value.keys()):
            raise ValueError(f"lacks {', '.join(sorted(f'{where}.{key}'.lstrip('.') for key in lacks))}")
        pairs = [(key, expected.get(key, expected.get(str))) for key in value if key in expected or str in expected]
        for key, inner in pairs:
            _check_types(value[key], inner, f"{where}.{key}".lstrip("."))
    elif isinstance(expected, list):
        if len(expected) > 1 and len(value) != len(expected):
            raise ValueError(f"has a wrong length: {where} must hold {len(expected)} values, got {value!r:.60}")
        for number, inner in enumerate(value):
            _check_types(inner, expected[0], f"{where}[{number}]")


def _head_width(model: nn.Module, data: DataSplits) -> int:
    """How many logits the network gives: registered networks end in a linear layer."""
    widths = [module.out_features for module in model.modules() if isinstance(module, nn.Linear)]
    return widths[-1] if widths else len(data.classes)


def _json(record: Mapping[str, Any]) -> str:
    """Indented, with lists of whole numbers on one line. Raises ValueError for what JSON cannot hold."""
    for name, value in record["metrics"].items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"metric {name!r} is {value!r} of type {type(value).__name__}; give finite Python numbers and text"
            ) from error
    text = json.dumps(record, indent=1, allow_nan=False) + "\n"
    return re.sub(r"\[\n[\s\d,]+\]", lambda numbers: " ".join(numbers[0].split()), text)


def _weights(model: nn.Module) -> bytes:
    """The state as safetensors. Every tensor is copied, as safetensors refuses those that share memory."""
    state = model.state_dict()
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"{name} in the model's state is no tensor but {type(value).__name__}; it cannot be saved")
    return save({name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.items()})


def _read_weights(file: Path, digest: str) -> dict[str, torch.Tensor]:
    """The tensors of a saved network. Raises FileNotFoundError, or ValueError where they are not the record's."""
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; {RECORD} describes it")
    weights = file.read_bytes()
    if _digest(weights) != digest:
        raise ValueError(f"{file} is truncated or belongs to another run: its digest is not the one in {RECORD}")
    try:
        return load(weights)
    except SafetensorError as error:
        raise ValueError(f"{file} is not a safetensors file: {error}; save the network again") from error


def _digest(weights: bytes) -> str:
    return hashlib.blake2b(weights, digest_size=16).hexdigest()
