"""Find what can be pruned in known networks: groups, protected layers, the proof, and torch-pruning for comparison.

    python -m benchmarks.make.zoo                          # every CNN of torchvision, five of timm, our own
    python -m benchmarks.make.zoo resnet18 timm/resnest14d --out zoo.jsonl

Appends one JSON row for each network as soon as it is complete, and skips networks that have a row. At the end it
prints a table in Markdown. Weights are random, and so are BatchNorm statistics, so that shifts have an effect.
"""

from __future__ import annotations

import copy
import re
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
import tyro
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from tqdm import tqdm

from prune_env.common.command import check_writable, one_line_errors, require_packages
from prune_env.common.settings import Settings
from prune_env.networks import create, list_networks
from prune_env.networks.registry import image_size
from prune_env.pruning import inspect
from prune_env.pruning.proof import TOLERANCE, zeros_at_consumers
from prune_env.pruning.surgery import Removed

from ..compare import rows

TRANSFORMERS = ("vit", "swin", "maxvit")
TIMM = ("timm/resnest14d", "timm/ghostnet_100", "timm/dla34", "timm/hrnet_w18_small", "timm/cspresnet50")
LARGE_IMAGES = {"inception_v3": 299, "timm/hrnet_w18_small": 64}
TRIED = 6
"""Number of convolutions per network that torch-pruning is tried on; each try copies and traces the network."""


@dataclass(frozen=True)
class Config(Settings):
    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Registered networks, networks of torchvision, or networks of timm as timm/NAME; default: all."""
    out: Path = Path("runs/zoo.jsonl")
    """File with one JSON row for each network."""


def main(config: Config) -> None:
    require_packages(["torch_pruning"], "the comparison", "benchmarks")
    check_writable("out", config.out)
    check_names(config.names or all_names())
    names = config.names or all_names()
    done = {row["name"]: row for row in rows.read_file(config.out)}
    for name in tqdm(names):
        if name not in done:
            done[name] = examine(name)
            rows.append(config.out, done[name])
    print(table([done[name] for name in names]))


def all_names() -> tuple[str, ...]:
    """Return the names of our networks, every convolutional classifier of torchvision, and five networks of timm."""
    ours, everything = list_networks(), torchvision.models.list_models(module=torchvision.models)
    theirs = [name for name in everything if not name.startswith(TRANSFORMERS)]
    return (*ours, *(f"torchvision/{name}" if name in ours else name for name in theirs), *TIMM)


def check_names(names: Sequence[str]) -> None:
    """Check that `make` can make all these networks.

    Raises:
        ValueError: torchvision has no network of this name.
        ImportError: A network is timm's, which is not installed.
    """
    known = {*list_networks(), *torchvision.models.list_models(module=torchvision.models)}
    for name in names:
        if name.startswith("timm/"):
            require_packages(["timm"], f"network {name!r}", "benchmarks")
        elif name.removeprefix("torchvision/") not in known:
            raise ValueError(f"network {name!r} is unknown; choose one of {', '.join(sorted(known))}, or timm/NAME")


def make(name: str) -> tuple[nn.Module, torch.Tensor]:
    """Return a network with random weights in eval mode, and two images for it."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.default_generator.manual_seed(0)
        if name in list_networks():
            model, size = create(name), image_size(name)
        elif name.startswith("timm/"):
            import timm

            model, size = timm.create_model(name.removeprefix("timm/")), (64, 64)
        else:
            model, size = torchvision.models.get_model(name.removeprefix("torchvision/"), weights=None), (64, 64)
        for module in model.modules():
            if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.2)
                module.running_mean.normal_(std=0.2)
                module.running_var.uniform_(0.5, 1.5)
    height, width = (LARGE_IMAGES[name],) * 2 if name in LARGE_IMAGES else size
    return model.eval(), torch.randn(2, 3, height, width, generator=generator)


def examine(name: str) -> dict[str, Any]:
    """Return the row of a network: what `inspect` finds and how long it takes, and how torch-pruning does alone."""
    model, images = make(name)
    start = time.perf_counter()
    inspect(model, images, prove=False, linear=False)
    traced = time.perf_counter()
    found = inspect(model, images, linear=False)
    assert found.differences is not None
    return {
        "name": name,
        "convolutions": len(_convolutions(model)),
        "groups": len(found.groups),
        "protected": sorted({layer for entry in found.protected for layer in entry.layers}),
        "reasons": sorted({re.sub(r"\S*\.\S*", "...", entry.reason) for entry in found.protected}),
        "difference": max(found.differences.values(), default=0.0),
        "trace_seconds": traced - start,
        "prove_seconds": time.perf_counter() - traced,
        "removable": found.removable,
        "torch_pruning": torch_pruning_alone(model, images),
    }


def torch_pruning_alone(model: nn.Module, images: torch.Tensor) -> str:
    """Return whether torch-pruning removes half of the filters of single convolutions correctly, in words."""
    import torch_pruning as tp

    fails = differs = count = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tp.DependencyGraph().build_dependency(copy.deepcopy(model), images, verbose=False)
        except Exception as error:
            return f"cannot trace it ({type(error).__name__})"
        convolutions = _convolutions(model)
        for path in convolutions[:: -(-len(convolutions) // TRIED)]:
            try:
                correct = _pruned_correctly(model, images, path)
            except Exception:
                count += 1
                fails += 1
            else:
                count += correct is not None
                differs += correct is False
    if not fails and not differs:
        return "right"
    results = {f"{fails} of {count} fail": fails, f"{differs} of {count} wrong": differs}
    return "; ".join(text for text, number in results.items() if number)


def _pruned_correctly(model: nn.Module, images: torch.Tensor, path: str) -> bool | None:
    """Whether torch-pruning removes filters of one convolution correctly; None if it refuses to."""
    import torch_pruning as tp

    pruned = copy.deepcopy(model)
    graph = tp.DependencyGraph().build_dependency(pruned, images, verbose=False)
    layer: Any = pruned.get_submodule(path)
    pruner = graph.get_pruner_of_module(layer)
    group = graph.get_pruning_group(layer, pruner.prune_out_channels, list(range(layer.out_channels // 2)))
    if not graph.check_pruning_group(group):
        return None
    names = {module: name for name, module in pruned.named_modules()}
    removed: Removed = {
        (names[item.dep.target.module], "in"): torch.tensor(sorted(item.idxs))
        for item in group
        if isinstance(item.dep.target.module, _ConvNd | nn.Linear)
        and item.dep.handler == graph.get_pruner_of_module(item.dep.target.module).prune_in_channels
        and getattr(item.dep.target.module, "groups", 1) == 1
    }
    group.prune()
    with torch.inference_mode():
        full, found = model(images), pruned(images)
        with zeros_at_consumers(model, removed):
            expected = model(images)
    return bool((found - expected).abs().max() <= TOLERANCE * full.abs().max())


def _convolutions(model: nn.Module) -> list[str]:
    return [path for path, module in model.named_modules() if isinstance(module, _ConvNd)]


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a table in Markdown."""
    lines = [
        "| network | convolutions | groups | protected | why | largest difference | trace, prove (s) | removable "
        "| torch-pruning alone |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        reasons = sorted({re.sub(r" \(.*\)", "", reason) for reason in row["reasons"]})
        lines.append(
            f"| {row['name']} | {row['convolutions']} | {row['groups']} | {len(row['protected'])} "
            f"| {'; '.join(reasons)} | {row['difference']:.0e} "
            f"| {row['trace_seconds']:.1f}, {row['prove_seconds']:.1f} | {100 * row['removable']:.1f} % "
            f"| {row['torch_pruning']} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    with one_line_errors():
        main(tyro.cli(Config, prog="python -m benchmarks.make.zoo", description=__doc__))
