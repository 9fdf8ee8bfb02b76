"""Prune networks for large images with one command each: minutes of every stage, and latencies.

    python -m benchmarks.speed.one_command                       # five networks at 224 px to half of the MACs
    python -m benchmarks.speed.one_command torchvision:resnet18 --cost latency --target 0.6

The images are enlarged ones. The networks have random weights and a linear head that is fitted briefly, so accuracies
mean nothing here; costs, minutes and latencies do not depend on them. For every network, `prune-env prune` runs in a
new process, with its defaults except for a short search and training. Then the original network and the pruned one are
timed in turn in onnxruntime. Appends a row for each network to one_command.jsonl. Rows that are in the file are not
measured again.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import nn

from prune_env.common.command import check_writable, one_line_errors, require_packages
from prune_env.common.onnx_session import PACKAGES
from prune_env.common.settings import Count, Fraction, Settings
from prune_env.data import DataSplits, from_folder, load
from prune_env.deploy.export import to_onnx
from prune_env.deploy.import_network import import_network
from prune_env.scoring.latency import TimingConfig, latencies
from prune_env.training.fit import FitConfig, fit
from prune_env.training.pretrained import with_network_normalisation

from ..compare import rows
from .photos import write_images

NETWORKS = (
    "torchvision:resnet50",
    "torchvision:mobilenet_v3_small",
    "torchvision:efficientnet_b0",
    "torchvision:convnext_tiny",
    "timm:cspresnet50",
)
TRAINING = ["--distillation.epochs=1", "--distillation.min-steps=0", "--distillation.batch-size=32", "--finalists=1"]


@dataclass(frozen=True)
class Config(Settings):
    networks: tyro.conf.Positional[tuple[str, ...]] = NETWORKS
    """Networks as torchvision:NAME or timm:NAME."""
    cost: Literal["macs", "params", "latency"] = "macs"
    """What the budget limits."""
    target: Fraction = 0.5
    """Fraction of the cost that may stay."""
    episodes: Count = 10
    """Episodes of the search."""
    images: Count = 500
    """Number of training images; there are a tenth as many test images."""
    size: Count = 224
    """Height and width of an image in pixels."""
    batch_sizes: tuple[Count, ...] = (1, 16)
    """Images per forward pass when latencies are measured."""
    threads: Count | None = None
    """CPU threads per operation when latencies are measured; None for all cores."""
    data: str = "cifar10"
    """Data set whose images are enlarged: digits, cifar10, cifar100, or an image folder."""
    out: Path = Path("runs/one_command")
    """Folder of one_command.jsonl, the images and the runs."""


def main(config: Config) -> None:
    require_packages(PACKAGES, "ONNX", "export")
    check_writable("out", config.out, folder=True)
    config.out.mkdir(parents=True, exist_ok=True)
    photos = config.out / f"images-{Path(config.data).name}-{config.images}-{config.size}"
    if not photos.is_dir():
        unfinished = photos.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        write_images(load(config.data), unfinished, config.images, config.size)
        unfinished.rename(photos)
    file = config.out / "one_command.jsonl"
    settled = {**asdict(config), "data": Path(config.data).name}
    del settled["networks"], settled["out"]
    settled = json.loads(rows.canonical(settled))  # as it will be read
    for network in config.networks:
        if any(row == {**row, "network": network, **settled} for row in rows.read_file(file)):
            continue
        measured = measure(config, network, photos)
        rows.append(file, {"network": network, **settled, **measured})
    print(table([row for row in rows.read_file(file) if row == {**row, **settled}]))


def measure(config: Config, network: str, photos: Path) -> dict[str, Any]:
    """Prune a network by the command and return its row."""
    name = f"{network.replace(':', '-')}-{config.cost}-{config.target:g}-{config.episodes}-{photos.name}"
    weights = config.out / f"{name}.pt"
    data = with_network_normalisation(network, from_folder(photos))
    original = with_fitted_head(network, data)
    torch.save(original.state_dict(), weights)
    budget = [f"--target-{config.cost}={config.target}", f"--episodes={config.episodes}"]
    if config.cost == "latency" and config.threads is not None:
        budget.append(f"--latency.timing.threads={config.threads}")
    command = ["prune", network, f"--weights={weights}", f"--data={photos}", *budget, *TRAINING]
    folder = config.out / name
    command += [f"--out={config.out}", f"--name={name}", *(["--resume"] if folder.is_dir() else [])]
    subprocess.run([sys.executable, "-m", "prune_env", *command], check=True)
    files = {"original": config.out / f"{name}-original.onnx", "pruned": folder / "pruned.onnx"}
    to_onnx(original, files["original"], data.example_input)
    metrics = json.loads((folder / "pruned.json").read_text())["metrics"]
    shares = {f"{cost}_share": round(metrics[f"{cost}_ratio"], 3) for cost in ("macs", "params")}
    if config.cost == "latency":
        shares["predicted_share"] = round(metrics["latency_ratio"], 3)
    for batch in config.batch_sizes:
        times = latencies(
            files, data.image_shape, batch, TimingConfig(threads=config.threads, seconds=10, max_seconds=60)
        )
        shares[f"latency_{batch}_ms"] = round(times["original"].median_ms, 1)
        shares[f"latency_{batch}_share"] = round(times["pruned"].median_ms / times["original"].median_ms, 3)
    return {"minutes": json.loads((folder / "minutes.json").read_text()), **shares}


def with_fitted_head(network: str, data: DataSplits) -> nn.Module:
    """Return a network with random weights whose last linear layer was trained for one epoch."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = import_network(network, len(data.classes), pretrained=False)
    model.requires_grad_(False)
    [*_, head] = (module for module in model.modules() if isinstance(module, nn.Linear))
    head.requires_grad_(True)
    return fit(model, data, FitConfig(epochs=1, batch_size=32, lr=0.01)).requires_grad_(True)


def table(measured: list[dict[str, Any]]) -> str:
    """Return a table in Markdown: minutes of every stage, and shares of the original network's latency."""
    stages = list(measured[0]["minutes"])
    shares = [name for name in measured[0] if name.endswith("_share")]
    lines = [
        ["network", *(f"{stage}, min" for stage in stages), "all, min", *(name.replace("_", " ") for name in shares)]
    ]
    lines.append(["---"] * len(lines[0]))
    for row in measured:
        minutes = [row["minutes"][stage] for stage in stages]
        lines.append(
            [
                row["network"],
                *(f"{one:.1f}" for one in (*minutes, sum(minutes))),
                *(f"{100 * row[s]:.0f} %" for s in shares),
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    with one_line_errors():
        main(tyro.cli(Config, prog="python -m benchmarks.speed.one_command", description=__doc__))
