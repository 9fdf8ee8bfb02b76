"""What of every known network can be pruned: agents, protected layers, proven differences; and torch-pruning beside it.

    python -m benchmarks.make.zoo                          # every CNN of torchvision, five of timm, our own
    python -m benchmarks.make.zoo resnet18 timm/resnest14d --out zoo.jsonl

One JSON row a network, appended as soon as it is known: networks that have a row are not done again. Ends by printing
a table in Markdown. Weights are random; BatchNorm statistics are drawn, so that shifts show.
"""

from __future__ import annotations

import copy
import re
import time
import warnings
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

from prune_env.networks import NETWORKS, create
from prune_env.networks.registry import image_size
from prune_env.pruning import inspect
from prune_env.pruning.proof import TOLERANCE, zeros_at_consumers

from ..compare import rows

TRANSFORMERS = ("vit", "swin", "maxvit")
TIMM = ("timm/resnest14d", "timm/ghostnet_100", "timm/dla34", "timm/hrnet_w18_small", "timm/cspresnet50")
LARGE_IMAGES = {"inception_v3": 299, "timm/hrnet_w18_small": 64}
TRIED = 6
"""Convolutions of a network that torch-pruning is tried on: each try copies and traces the network."""


@dataclass(frozen=True)
class Config:
    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """our own, of torchvision, or of timm as timm/NAME; none given: all"""
    out: Path = Path("runs/zoo.jsonl")
    """one JSON row a network"""


def main(config: Config) -> None:
    names = config.names or all_names()
    done = {row["name"]: row for row in rows.read_file(config.out)}
    for name in tqdm(names):
        if name not in done:
            done[name] = examine(name)
            rows.append(config.out, done[name])
    print(table([done[name] for name in names]))


def all_names() -> tuple[str, ...]:
    """Ours, every convolutional classifier of torchvision, and five of timm."""
    everything = torchvision.models.list_models(module=torchvision.models)
    theirs = [name for name in everything if not name.startswith(TRANSFORMERS)]
    return (*NETWORKS, *(f"torchvision/{name}" if name in NETWORKS else name for name in theirs), *TIMM)


def make(name: str) -> tuple[nn.Module, torch.Tensor]:
    """The network with random weights in eval mode, and two images."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        if name in NETWORKS:
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
    """One row: what `inspect` says and how long it took, and how torch-pruning fares alone."""
    model, images = make(name)
    convolutions = [path for path, module in model.named_modules() if isinstance(module, _ConvNd)]
    start = time.perf_counter()
    found = inspect(model, images, prove=False)
    traced = time.perf_counter()
    found = inspect(model, images)
    assert found.differences is not None
    return {
        "name": name,
        "convolutions": len(convolutions),
        "agents": len(found.groups),
        "protected": sorted({layer for entry in found.protected for layer in entry.layers}),
        "reasons": sorted({re.sub(r"\S*\.\S*", "...", entry.reason) for entry in found.protected}),
        "difference": max(found.differences.values(), default=0.0),
        "trace_seconds": traced - start,
        "prove_seconds": time.perf_counter() - traced,
        "removable": found.removable,
        "torch_pruning": torch_pruning_alone(model, images),
    }


def torch_pruning_alone(model: nn.Module, images: torch.Tensor) -> str:
    """Half of a convolution's filters removed by torch-pruning, one convolution at a time: does it hold?"""
    import torch_pruning as tp

    fails = differs = count = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tp.DependencyGraph().build_dependency(copy.deepcopy(model), images, verbose=False)
        except Exception as error:
            return f"cannot trace it ({type(error).__name__})"
        convolutions = [(path, module) for path, module in model.named_modules() if isinstance(module, _ConvNd)]
        for path, module in convolutions[:: -(-len(convolutions) // TRIED)]:
            pruned = copy.deepcopy(model)
            try:
                graph = tp.DependencyGraph().build_dependency(pruned, images, verbose=False)
                layer = pruned.get_submodule(path)
                pruner = graph.get_pruner_of_module(layer)
                group = graph.get_pruning_group(layer, pruner.prune_out_channels, list(range(module.out_channels // 2)))
                if not graph.check_pruning_group(group):
                    continue
                names = {module: name for name, module in pruned.named_modules()}
                gone = {
                    (names[item.dep.target.module], "in"): torch.tensor(sorted(item.idxs))
                    for item in group
                    if isinstance(item.dep.target.module, _ConvNd | nn.Linear)
                    and item.dep.handler == graph.get_pruner_of_module(item.dep.target.module).prune_in_channels
                    and getattr(item.dep.target.module, "groups", 1) == 1
                }
                group.prune()
                count += 1
                with torch.inference_mode():
                    full, found = model(images), pruned(images)
                    with zeros_at_consumers(model, gone):
                        expected = model(images)
                differs += not (found - expected).abs().max() <= TOLERANCE * full.abs().max()
            except Exception:
                count += 1
                fails += 1
    if not fails and not differs:
        return "right"
    told = {f"{fails} of {count} fail": fails, f"{differs} of {count} wrong": differs}
    return "; ".join(text for text, number in told.items() if number)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| network | convolutions | agents | protected | why | largest difference | trace, prove (s) | can go "
        "| torch-pruning alone |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        reasons = sorted({re.sub(r" \(.*\)", "", reason) for reason in row["reasons"]})
        lines.append(
            f"| {row['name']} | {row['convolutions']} | {row['agents']} | {len(row['protected'])} "
            f"| {'; '.join(reasons)} | {row['difference']:.0e} "
            f"| {row['trace_seconds']:.1f}, {row['prove_seconds']:.1f} | {100 * row['removable']:.1f} % "
            f"| {row['torch_pruning']} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main(tyro.cli(Config, prog="python -m benchmarks.make.zoo", description=__doc__))
