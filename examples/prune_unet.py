"""Prune a small U-Net that finds handwritten digits and their pixels: train, prune, distil, save, export.

    python examples/prune_unet.py                # about a minute
    python examples/prune_unet.py --episodes 60  # with a search by QMIX, instead of the least-change plan alone

The images are composed: four real digits of scikit-learn, 8x8 scans enlarged to 12x12, at random places of a 32x32
canvas. The mask has the class of every pixel: background, or one of ten digits. Training, reward and test canvases have
no scan in common.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
import tyro
from torch import nn
from torch.nn import functional as F

from prune_env import EnvConfig, FilterPruneEnv, PruningProblem, load_pruned, save_pruned
from prune_env.common.command import check_writable, one_line_errors
from prune_env.common.device import seeded
from prune_env.common.settings import Count, Settings, Whole
from prune_env.data import DataSplits, from_tensors
from prune_env.data.sources import digits
from prune_env.export import to_onnx
from prune_env.finalise import Finaliser, accuracy, recalibrated
from prune_env.training.distillation import DistillationConfig
from prune_env.training.fit import FitConfig, fit
from qmix_agent import QMIX, QMIXConfig

SIDE, DIGIT = 32, 12
"""Pixels per side of a canvas and of a digit."""
INK = 64
"""Pixels of a digit that are at least so bright belong to it."""


@dataclass(frozen=True)
class Config(Settings):
    canvases: Count = 1000  # composed training images
    width: Count = 8  # filters of the first level of the U-Net
    target_macs: float = 0.5  # fraction of the MACs that may stay
    episodes: Whole = 0  # episodes of a search; 0 takes the least-change plan
    out: Path = Path("runs/unet")  # folder of the pruned network
    training: FitConfig = field(
        default_factory=lambda: FitConfig(epochs=10, batch_size=16, lr=0.1, ema_decay=0.98, label_smoothing=0.0)
    )
    distillation: DistillationConfig = field(
        default_factory=lambda: DistillationConfig(epochs=4, batch_size=16, min_steps=100)
    )


class UNet(nn.Module):
    """Three levels; each is brought back to full resolution and joined with the one above (Ronneberger et al. 2015)."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.down1 = _convolutions(1, width)
        self.down2 = _convolutions(width, 2 * width)
        self.bottom = _convolutions(2 * width, 4 * width)
        self.up2 = _convolutions(4 * width + 2 * width, 2 * width)
        self.up1 = _convolutions(2 * width + width, width)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        full = self.down1(images)
        half = self.down2(F.max_pool2d(full, 2))
        quarter = self.bottom(F.max_pool2d(half, 2))
        half = self.up2(torch.cat((F.interpolate(quarter, scale_factor=2.0), half), 1))
        full = self.up1(torch.cat((F.interpolate(half, scale_factor=2.0), full), 1))
        logits: torch.Tensor = self.head(full)  # [B, classes, H, W]
        return logits


def _convolutions(inputs: int, filters: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inputs, filters):
        layers += [nn.Conv2d(channels, filters, 3, padding=1, bias=False), nn.BatchNorm2d(filters), nn.ReLU()]
    return nn.Sequential(*layers)


def canvases(count: int) -> DataSplits:
    """Compose training images, and a quarter as many for reward and test each, from different digits."""
    raw, generator = digits(), torch.Generator().manual_seed(0)
    held_out = torch.arange(len(raw.train)) % 5 == 0
    train, reward = (raw.train.select(rows.nonzero()[:, 0]) for rows in (~held_out, held_out))
    parts = [
        _compose(part.images[:, 0], part.labels, number, generator)
        for part, number in ((train, count), (reward, count // 4), (raw.test, count // 4))
    ]
    names = ("background", *raw.classes)
    return from_tensors(*parts[0], *parts[2], reward=parts[1], classes=names, name="digits on canvases")


def _compose(
    scans: torch.Tensor, labels: torch.Tensor, count: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Put a digit at a random place in each quarter of a canvas.

    Args:
        scans: Grey digits uint8 [N, 8, 8].
        labels: Their numbers [N].
        count: Number of canvases.
        generator: Source of the random numbers.

    Returns:
        Images uint8 [count, 1, 32, 32] and masks [count, 32, 32]; 0 is background, 1 the digit 0.
    """
    images, masks = torch.zeros(2, count, SIDE, SIDE, dtype=torch.uint8)
    scans = F.interpolate(scans[:, None].float(), DIGIT, mode="bilinear")[:, 0].round().to(torch.uint8)
    drawn = torch.where(scans >= INK, labels[:, None, None] + 1, 0).to(torch.uint8)  # [N, 12, 12]
    half, canvas, along = SIDE // 2, torch.arange(count)[:, None, None], torch.arange(DIGIT)
    for quarter in range(4):
        digit = torch.randint(len(scans), (count,), generator=generator)
        corner = torch.randint(half - DIGIT + 1, (2, count, 1), generator=generator)
        corner += half * torch.tensor(divmod(quarter, 2)).view(2, 1, 1)
        rows, columns = (corner + along)[:, :, :, None].unbind()  # [count, 12, 1] each
        area = canvas, rows, columns.transpose(1, 2)
        images[area], masks[area] = scans[digit], drawn[digit]
    return images[:, None], masks


def main(config: Config) -> None:
    check_writable("out", config.out, folder=True)
    settings = EnvConfig(target_macs=config.target_macs, reward_images=200)  # checked before training
    data = canvases(config.canvases)
    print(f"Data {data.summary}")
    with seeded("cpu", 0):
        model: nn.Module = UNet(len(data.classes), config.width)
    model = fit(model, data, config.training)
    problem = PruningProblem.create(model, data, settings)
    env = FilterPruneEnv(problem, settings)
    env.play(env.least_change.plan(config.target_macs))
    if config.episodes:
        QMIX(env, QMIXConfig(standardise_returns=True), seed=0).learn(config.episodes)
    best = env.archive.best(1)[0]
    network = Finaliser(env, config.distillation).distil(best.plan)
    save_pruned(config.out, network, best.plan, problem)
    loaded = load_pruned(config.out, base_model=model)
    to_onnx(loaded, config.out / "pruned.onnx", data.normalise(data.test.first(4)))
    print(f"\n{'network':<18} {'test mean IoU':>13} {'MACs':>12} {'parameters':>11}")
    rows = (
        ("original", model, problem.full_plan),
        ("pruned", recalibrated(env, best.plan), best.plan),
        ("pruned, distilled", loaded, best.plan),
    )
    for name, one, plan in rows:
        score = 100 * accuracy(one, data, data.test)
        print(f"{name:<18} {score:>11.2f} % {problem.cost.macs(plan):>12,} {problem.cost.params(plan):>11,}")
    print(f"\n{config.out} has the network (pruned.safetensors, pruned.json) and pruned.onnx")


if __name__ == "__main__":
    with one_line_errors():
        main(tyro.cli(Config, description=__doc__))
