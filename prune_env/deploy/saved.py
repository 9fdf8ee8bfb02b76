"""Save and load a pruned network: weights as safetensors, structure and metadata as JSON. No pickles.

The record lists the channels that remain, module by module. A saved network therefore does not depend on recomputing a
ranking, on tracing, or on the order or names of groups. The weights include buffers that a state dict leaves out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..common.expect import expect
from ..common.files import replacing
from ..data import DataSplits
from ..networks.registry import create, image_size, list_networks
from ..pruning import Member, Plan, PruningGroup, build_from_indices, channels, kept_indices
from ..pruning.copies import uncompiled
from ..pruning.problem import PruningProblem
from .import_network import network_from_path
from .record import FORMAT_VERSION, RECORD, WEIGHTS, read_record, to_json
from .weights import all_tensors, digest_of, read_weights, split_state, to_bytes


def save_pruned(
    directory: str | Path,
    model: nn.Module,
    plan: Plan,
    problem: PruningProblem,
    *,
    base: str | nn.Module | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> None:
    """Write a pruned network as `pruned.safetensors` and `pruned.json`; each file is written completely or not at all.

    Args:
        directory: The folder to write to; it is created if it does not exist.
        model: The network that `problem.build(plan)` made, trained further or not; tensors keep their types.
        plan: The plan of the network.
        problem: The pruning problem: its groups, their ranking, and the data.
        base: How `load_pruned` makes the original network: the name of a registered network, or an import path
            'package.module:factory' of a network or of a function that makes one. If it is the original network
            itself, `model` is checked against it, and `load_pruned` needs the argument `base_model`. An import path
            is imported and called here, and by `load_pruned` only with `trust_base`; its module must not be in
            `directory`. With None, `load_pruned` needs `base_model`, too, and some mistakes are only found then.
        metrics: Numbers to store with the network.

    Raises:
        TypeError: An argument is of another type.
        ValueError: `model` is not a network of `plan`, `base` cannot be imported or is another network, or a metric is
            not finite. Nothing is written then.

    Example:
        >>> save_pruned("runs/mine", network, plan, env.problem, base="resnet20", metrics={"test_accuracy": 0.91})
        >>> network = load_pruned("runs/mine")
    """
    directory = Path(directory)
    expect(problem, PruningProblem, "problem must be a PruningProblem", "an environment has one: env.problem")
    name, import_path = _named(base)
    groups, data = problem.groups, problem.data
    sides = _kept_channels(model, groups, kept_indices(groups, problem.ranking, plan))
    layers = {layer for group in groups for layer in group.layers}
    record: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "network": {
            "name": name,
            "base": import_path,
            "num_classes": _head_width(model, data),
            "in_channels": data.image_shape[0],
        },
        "modules": _class_names(model),
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
    original = base if isinstance(base, nn.Module) else _recorded_base(record, model.state_dict())
    if import_path is not None:
        original = network_from_path(import_path, excluded=directory)
    if original is not None:
        try:
            _check_fit(_cut(original, sides), record["modules"], model.state_dict())
        except ValueError as error:
            raise ValueError(f"the model is not a network of this plan and base: {error}") from error
    _write(directory, record, model)


def update_pruned(
    directory: str | Path, model: nn.Module, out: str | Path, *, metrics: Mapping[str, Any] | None = None
) -> None:
    """Write a saved network to another folder after it was loaded and trained further.

    The old folder stays as it is: its ONNX files and tables are those of the old weights.

    Args:
        directory: The folder that `save_pruned` wrote.
        model: The network that `load_pruned(directory)` returned, trained further; tensors keep their types.
        out: The folder to write to.
        metrics: Numbers to store with the network. Those of the old weights are dropped.

    Raises:
        FileNotFoundError: A file does not exist.
        NotADirectoryError: `directory` is a file.
        TypeError: `model` is no network.
        ValueError: A file is damaged, `model` is another network, `out` is the same folder, a metric is not finite, or
            a weight is no longer finite. Nothing is written then.

    Example:
        >>> network = load_pruned("runs/mine")
        >>> train(network)
        >>> update_pruned("runs/mine", network, "runs/mine-trained", metrics={"test_accuracy": 0.92})
    """
    directory, out = Path(directory), Path(out)
    expect(model, nn.Module, "model must be a network (nn.Module)")
    record = read_record(directory)
    if out.resolve() == directory.resolve():
        raise ValueError(
            f"out must be another folder than {directory}, whose ONNX files and table have the old weights"
        )
    tensors = read_weights(directory / WEIGHTS, record["weights_digest"])
    try:
        state, _ = split_state(model, tensors)
        _check_fit(model, record["modules"], state, "given model")
    except ValueError as error:
        raise ValueError(
            f"the model is not the network of {directory}: {error}; if it is wrapped (DistributedDataParallel, "
            "torch.compile, a LightningModule), give the network inside"
        ) from error
    for name, tensor in all_tensors(model).items():
        if (name not in tensors or tensors[name].isfinite().all()) and not tensor.isfinite().all():
            raise ValueError(f"{name} is no longer finite: the training has diverged")
    _write(out, {**record, "metrics": dict(metrics or {})}, model)


def add_metrics(directory: Path, metrics: Mapping[str, Any]) -> None:
    """Add numbers to the metrics of a saved network.

    Raises:
        ValueError: The record is damaged, or a metric is not finite.
    """
    record = read_record(directory)
    _write_record(directory, to_json({**record, "metrics": {**record["metrics"], **metrics}}))


def load_pruned(
    directory: str | Path,
    base_model: nn.Module | Callable[[], nn.Module] | None = None,
    *,
    trust_base: str | None = None,
) -> nn.Module:
    """Load a saved network. No code that the record names is run, unless `trust_base` gives its exact name.

    Args:
        directory: The folder that `save_pruned` wrote.
        base_model: The original network, or a function that makes it. Only its structure matters, not its tensors.
            Needed for a network that was saved without a `base`; takes precedence over the record's base.
        trust_base: The import path 'package.module:factory' of the record, which is then imported and called. The
            module must not be in `directory`. Networks of the registry need no trust.

    Returns:
        The network, in eval mode on the CPU, in the precision in which it was saved.

    Raises:
        FileNotFoundError: A file does not exist.
        NotADirectoryError: `directory` is a file.
        TypeError: `base_model` or `trust_base` is of another type.
        ValueError: A file is damaged, the base does not fit, or the record names an import path other than
            `trust_base`.
    """
    directory = Path(directory)
    expect(trust_base, (str, type(None)), "trust_base must be the import path that the record names")
    if base_model is not None and not callable(base_model):
        expect(base_model, nn.Module, "base_model must be a network (nn.Module) or a function that makes one")
    record = read_record(directory)
    tensors = read_weights(directory / WEIGHTS, record["weights_digest"])
    try:
        if base_model is not None:
            base: nn.Module | None = _given_base(base_model)
        elif (path := record["network"]["base"]) is not None or trust_base is not None:
            base = _trusted_base(path, trust_base, directory)
        else:
            base = _recorded_base(record, tensors)
    except ValueError as error:
        raise ValueError(f"{directory / RECORD}: {error}") from error
    if base is None:
        raise ValueError(
            f"{directory / RECORD} names neither a registered network nor an import path; pass the original network as "
            "base_model (on the command line: --base)"
        )
    try:
        network = _cut(base, record["kept_channels"])
        state, buffers = split_state(network, tensors)
        _check_fit(network, record["modules"], state)
        modules = dict(network.named_modules())
        for layer, filters in record["plan"].items():
            if layer not in modules:
                raise ValueError(f"the network has no layer {layer!r}, the plan has one")
            if (found := channels(modules[layer], "out")) != filters:
                raise ValueError(f"layer {layer} has {found} filters, the plan has {filters}")
    except ValueError as error:
        raise ValueError(
            f"{directory / RECORD} does not fit the base network: {error}; pass the network that was pruned as "
            "base_model"
        ) from error
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if name in state:  # the network takes the file's precision
            tensor.data = tensor.data.to(state[name].dtype)
    network.load_state_dict(state)
    for name, tensor in buffers.items():
        path, _, buffer = name.rpartition(".")
        setattr(network.get_submodule(path), buffer, tensor)
    return network.cpu().eval()


def _write(directory: Path, record: Mapping[str, Any], model: nn.Module) -> None:
    """Write a network's weights, and its record with their digest."""
    weights = to_bytes(model)
    text = to_json({**record, "weights_digest": digest_of(weights)})  # can raise, so before anything is written
    with replacing(directory / WEIGHTS) as temporary:
        temporary.write_bytes(weights)
    _write_record(directory, text)


def _write_record(directory: Path, text: str) -> None:
    with replacing(directory / RECORD) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _named(base: str | nn.Module | None) -> tuple[str | None, str | None]:
    """Return the registered name and the import path of a base; at least one of them is None."""
    expect(base, (str, nn.Module, type(None)), "base must be a name, an import path or a network (nn.Module)")
    if not isinstance(base, str):
        return None, None
    if ":" in base:
        return None, base
    if base not in list_networks():
        raise ValueError(
            f"base {base!r} is neither a registered network ({', '.join(list_networks())}) nor an import path "
            "'package.module:factory'"
        )
    return base, None


def _given_base(base: nn.Module | Callable[[], nn.Module]) -> nn.Module:
    """Return the network that the caller passed, or that the caller's function makes."""
    network = base if isinstance(base, nn.Module) else base()
    expect(network, nn.Module, "the function base_model must return a network (nn.Module)")
    return network


def _trusted_base(path: str | None, trusted: str | None, directory: Path) -> nn.Module:
    """Import and call the import path of a record, if the caller gave its exact name.

    Raises:
        ValueError: The caller gave none or another name, or the path does not make a network.
    """
    if trusted is None:
        raise ValueError(
            f"the record names the import path {path!r}, whose code would run; pass the original network as base_model "
            f"(on the command line: --base), or, if you trust this code, trust_base={path!r} (--trust-base)"
        )
    if path != trusted:
        raise ValueError(f"trust_base is {trusted!r}, but the record names {repr(path) if path else 'no import path'}")
    return network_from_path(trusted, excluded=directory)


def _recorded_base(record: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> nn.Module | None:
    """Make the registered network of a record, or return None if the record names none.

    Args:
        record: The record.
        tensors: Tensors of the pruned network, which bounds the sizes in the record.

    Raises:
        ValueError: It cannot be made.
    """
    network = record["network"]
    name = network["name"]
    if name is None:
        return None
    if name not in list_networks():
        raise ValueError(
            f"network {name!r} is not registered ({', '.join(list_networks())}); register it with register_network "
            "before loading, or name its base instead"
        )
    expected, size = image_size(name), tuple(record["data"]["image_shape"][1:])
    if size != expected:
        raise ValueError(f"network {name!r} takes images of {expected} pixels, the data have {size}")
    classes, inputs = network["num_classes"], network["in_channels"]
    held = {size for tensor in tensors.values() if tensor.numel() for size in tensor.shape}
    for size in (classes, inputs):  # no tensor of that size may be allocated
        if size > max(held, default=0):
            raise ValueError(
                f"network {name!r} with {classes} classes and {inputs} channels of images does not fit the weights, "
                f"whose largest tensor dimension is {max(held, default=0)}"
            )
    try:
        with torch.device("meta"):
            sketch = create(name, classes, inputs)  # without memory for its weights
    except (RuntimeError, NotImplementedError):  # a constructor that computes with its weights cannot run on meta
        sketch = None
    if sketch is not None:
        try:
            pruned = _cut(sketch, record["kept_channels"])
            _check_fit(pruned, record["modules"], split_state(pruned, tensors)[0])
        except ValueError as error:
            raise ValueError(f"the weights are not those of {name!r} with {classes} classes: {error}") from error
    return create(name, classes, inputs)


def _kept_channels(
    model: nn.Module, groups: Sequence[PruningGroup], kept: Mapping[str, torch.Tensor]
) -> list[dict[str, Any]]:
    """List, for every module side with channels of a group, the original channels and those that remain.

    The entries are in the order of the model's modules. Channels of no group remain.

    Raises:
        ValueError: The model lacks a module or has too few channels.
    """
    removed: dict[tuple[str, str], set[int]] = {}
    highest: dict[tuple[str, str], int] = {}
    for group in groups:
        removes = torch.ones(group.filters, dtype=torch.bool)
        removes[kept[group.name]] = False
        for member in group.members:
            key = (member.module, member.side)
            removed.setdefault(key, set()).update(member.index[removes].flatten().tolist())
            highest[key] = max(highest.get(key, 0), int(member.index.max()))
    modules = dict(model.named_modules())
    if absent := sorted({module for module, _ in removed} - modules.keys()):
        raise ValueError(f"the model is not a network of this plan: it has no module {absent[0]!r}")
    entries = []
    for module in modules:
        for side in ("out", "in"):
            if (gone := removed.get((module, side))) is None:
                continue
            found = channels(modules[module], side)
            size = found + len(gone)
            if highest[module, side] >= size:
                raise ValueError(
                    f"the model is not a network of this plan: {module} has {found} channels on its {side} side, the "
                    f"plan keeps at least {highest[module, side] + 1 - len(gone)}"
                )
            remaining = [position for position in range(size) if position not in gone]
            entries.append({"module": module, "side": side, "of": size, "kept": remaining})
    return entries


def _cut(base: nn.Module, sides: Sequence[Mapping[str, Any]]) -> nn.Module:
    """Remove the channels that do not remain from the base; every module side is treated as a group.

    Raises:
        ValueError: The base has other modules or channels.
    """
    base = uncompiled(base)
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


def _class_names(model: nn.Module) -> dict[str, str]:
    """Return path of every module -> name of its class."""
    return {path: type(module).__name__ for path, module in model.named_modules()}


def _check_fit(
    network: nn.Module, classes: Mapping[str, str], tensors: Mapping[str, torch.Tensor], what: str = "cut base"
) -> None:
    """Check that a network has exactly these module classes, tensor shapes and kinds of numbers.

    Raises:
        ValueError: It has others; the message names the first difference, and calls the network `what`.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    own_shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    comparisons: list[tuple[str, Mapping[str, Any], Mapping[str, Any]]] = [
        ("module", _class_names(network), classes),
        ("tensor", own_shapes, shapes),
        ("type of tensor", _kinds(network.state_dict()), _kinds(tensors)),
    ]
    for kind, own, other in comparisons:
        for name in sorted(own.keys() | other.keys()):
            if own.get(name) != other.get(name):
                raise ValueError(
                    f"{kind} {name or '(the network itself)'} of the {what} is {own.get(name, 'absent')}, of the "
                    f"saved network {other.get(name, 'absent')}"
                )


def _kinds(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return name of every tensor -> its kind of numbers: precisions may differ, kinds may not."""
    return {
        name: "floating" if tensor.is_floating_point() else "complex" if tensor.is_complex() else str(tensor.dtype)
        for name, tensor in tensors.items()
    }


def _head_width(model: nn.Module, data: DataSplits) -> int:
    """Return the number of logits: registered networks end in a linear layer."""
    widths = [module.out_features for module in model.modules() if isinstance(module, nn.Linear)]
    return widths[-1] if widths else len(data.classes)
