"""Prune your own network on your own images: train, search, distil, save, load.

    python examples/prune_your_model.py                       # digits as 32x32 colour images: minutes on 2 cores
    python examples/prune_your_model.py --data PATH --size 64 # PATH/{train,test}/<class>/*, images of any size

The pruned network is saved in runs/own/.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet18

from prune_env import EnvConfig, FilterPruneEnv, PruningProblem, load_pruned, save_pruned
from prune_env.common.command import check_writable, one_line_errors
from prune_env.common.settings import Count, Settings
from prune_env.data import Augmentation, DataSplits, from_folder, from_tensors
from prune_env.data.normalisation import Name, check_pair
from prune_env.data.sources import digits
from prune_env.finalise import Finaliser, accuracy
from prune_env.training.distillation import DistillationConfig
from prune_env.training.fit import FitConfig, fit
from qmix_agent import QMIX, QMIXConfig


@dataclass(frozen=True)
class Config(Settings):
    data: str = "digits"  # digits, or an image folder PATH/{train,test}/<class>/*
    size: Count = 32  # images are resized to this number of pixels per side
    mean: Name | tuple[float, ...] | None = None  # of each channel, for pixels from 0 to 1
    std: Name | tuple[float, ...] | None = None  # a name stands for mean and std
    target_macs: float = 0.5  # fraction of the MACs that may stay
    episodes: Count = 60  # episodes of the search; each ends with one plan
    finalists: Count = 2  # number of best plans that get a short distillation
    out: Path = Path("runs/own")  # folder of the pruned network
    training: FitConfig = field(default_factory=lambda: FitConfig(epochs=8, batch_size=64, lr=0.05, ema_decay=0.98))
    distillation: DistillationConfig = field(default_factory=lambda: DistillationConfig(batch_size=64, min_steps=100))


def images(source: str, size: int, **normalisation: Any) -> DataSplits:
    if source == "digits":
        raw = digits()
        train, test = (F.interpolate(part.images.expand(-1, 3, -1, -1), size) for part in (raw.train, raw.test))
        shifts = Augmentation(pad=2, flip=False)  # digits are not mirror images of each other
        tensors = (train, raw.train.labels, test, raw.test.labels)
        return from_tensors(*tensors, augmentation=shifts, name="digits", **normalisation)
    return from_folder(source, size=size, **normalisation)


def main(config: Config) -> None:
    check_writable("out", config.out, folder=True)
    settings = EnvConfig(target_macs=config.target_macs, reward_images=300)  # checked before training
    check_pair(config.mean, config.std)
    data = images(config.data, config.size, mean=config.mean, std=config.std)
    print(f"Data {data.summary}")
    model: nn.Module = resnet18(weights=None)
    model.fc = nn.Linear(512, len(data.classes))
    model = fit(model, data, config.training)
    problem = PruningProblem.create(model, data, settings)
    env = FilterPruneEnv(problem, settings)
    QMIX(env, QMIXConfig(standardise_returns=True), seed=0).learn(config.episodes)
    finaliser = Finaliser(env, config.distillation)
    winner = finaliser.rank([entry.plan for entry in env.archive.best(config.finalists)])[0].plan
    network = finaliser.distil(winner)
    save_pruned(config.out, network, winner, problem)
    loaded = load_pruned(config.out, base_model=model)
    print(f"\n{'network':<10} {'test accuracy':>13} {'MACs':>14} {'parameters':>12}")
    for name, network, plan in (("original", model, problem.full_plan), ("pruned", loaded, winner)):
        right = 100 * accuracy(network, data, data.test)
        print(f"{name:<10} {right:>11.2f} % {problem.cost.macs(plan):>14,} {problem.cost.params(plan):>12,}")


if __name__ == "__main__":
    with one_line_errors():
        main(tyro.cli(Config, description=__doc__))
