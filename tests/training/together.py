"""Trainings that one process or several together run; as a program, one of two processes.

python together.py RANK FOLDER
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
from torch import nn

from prune_env import data
from prune_env.game.tabulated import Table
from prune_env.networks import create
from prune_env.training.distillation import DistillationConfig, distil
from prune_env.training.fit import FitConfig, RunOptions, fit

SHORT = FitConfig(epochs=0.5, batch_size=128, lr=0.05, ema_decay=0.5, cutout=2, select_best=True, precision="fp32")
TAUGHT = DistillationConfig(epochs=0.5, min_steps=0, batch_size=128, precision="fp32", ema_decay=0.5)
COUNT = 2


class Plain(nn.Module):
    """A network without BatchNorm, with an auxiliary head that is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head, self.aux = nn.Conv2d(1, 8, 3), nn.Linear(8, 10), nn.Linear(8, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        features = self.conv(images).relu().mean((2, 3))
        return (self.head(features), self.aux(features)) if self.training else self.head(features)


def plain() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return Plain()


def trainings(checkpoint: Path) -> dict[str, Callable[[], nn.Module]]:
    """Return the trainings by name; the first one writes a checkpoint."""
    splits, run = data.load("digits"), RunOptions(progress=False)
    return {
        "plain": lambda: fit(plain(), splits, SHORT, run=RunOptions(checkpoint=checkpoint, title="shown")),
        "batchnorm": lambda: distil(create("small_cnn", 10, 1), Table.load().network(), splits, TAUGHT, run=run),
        "muon": muon,
    }


def muon() -> nn.Module:
    """Train with Muon in float32; in bfloat16, another order of sums would show."""
    with mock.patch("prune_env.training.muon.fast_dtype", return_value=torch.float32):
        config = replace(SHORT, muon_lr=0.1)
        return fit(create("small_cnn", 10, 1), data.load("digits"), config, run=RunOptions(progress=False))


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'group'}", rank=rank, world_size=COUNT)
    for name, train in trainings(folder / f"checkpoint-{rank}.pt").items():
        torch.save(train().state_dict(), folder / f"{name}-{rank}.pt")
    torch.save(trainings(folder / "checkpoint-0.pt")["plain"]().state_dict(), folder / f"resumed-{rank}.pt")
    for name, config in {"seed": replace(SHORT, seed=rank), "batch": replace(SHORT, batch_size=63)}.items():
        try:
            fit(plain(), data.load("digits"), config, run=RunOptions(progress=False))
        except ValueError as error:
            (folder / f"{name}-{rank}.txt").write_text(str(error))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
