"""The games that a policy learns on, and those that it is judged on.

The two have no network in common. Kept out of the learning set are a family (grouped convolutions), all networks with
more than eight blocks, and the full-size images of CIFAR-10.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from prune_env import DataSplits, EnvConfig, FilterPruneEnv
from prune_env.common.tensor_files import save_tensors
from prune_env.data import Split, TensorSplit, load
from prune_env.training.fit import FitConfig, RunOptions, fit
from prune_env.training.pretrained import load_weights

from .architectures import Architecture

TARGETS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
"""Budgets of every game, as fractions of the original MACs."""
RATES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
"""Three rounds of the highest rate keep 6 % of the filters, enough for the smallest budget."""
REWARD_IMAGES = 500
"""Reward images of every game, so that an evaluation takes milliseconds."""
RECIPES = {
    "digits": FitConfig(epochs=25, batch_size=64, lr=0.3, ema_decay=0.98),
    "cifar16": FitConfig(epochs=4, batch_size=128, lr=0.2, ema_decay=0.99),
}
"""How networks are trained on each data set."""


@dataclass(frozen=True)
class GameSpec:
    """An architecture and the data it is trained on."""

    architecture: Architecture
    data: str
    """A key of `RECIPES`."""

    @property
    def name(self) -> str:
        """Data and architecture in one word."""
        return f"{self.data}-{self.architecture.name}"


def _games(data: str, *architectures: tuple[str, tuple[int, ...], tuple[int, ...]]) -> list[GameSpec]:
    return [GameSpec(Architecture(*architecture), data) for architecture in architectures]


def _sampled(count: int) -> list[GameSpec]:
    """Return distinct networks for digits, equally many of each family that the policy learns on.

    Widths rise and fall at random, so that the policy cannot learn where in a network filters are superfluous.
    """
    rng = np.random.default_rng(0)
    specs: dict[str, GameSpec] = {}
    while len(specs) < count:
        family, widths = list(WIDTHS.items())[len(specs) % len(WIDTHS)]
        stages = int(rng.integers(2, 4))
        architecture = Architecture(
            family, tuple(rng.choice(widths, stages).tolist()), tuple(rng.integers(1, 6 - stages, stages).tolist())
        )
        spec = GameSpec(architecture, "digits")
        specs[spec.name] = spec
    return list(specs.values())


WIDTHS = {
    "plain": (12, 16, 24, 32, 48),
    "residual": (8, 12, 16, 24, 32),
    "bottleneck": (8, 12, 16, 24),
    "depthwise": (8, 12, 16, 24),
    "dense": (8, 12, 16),
}
"""Families that the policy learns on, and the widths of their stages."""

LEARNING = [
    *_sampled(60),
    *_games(
        "cifar16",
        ("plain", (24, 48), (2, 2)),
        ("plain", (16, 32, 64), (1, 2, 2)),
        ("residual", (16, 32), (2, 2)),
        ("residual", (16, 32, 64), (1, 1, 1)),
        ("bottleneck", (12, 24), (2, 2)),
        ("depthwise", (16, 24), (2, 2)),
        ("dense", (12, 16), (3, 3)),
    ),
]
"""Networks that the policy learns on."""

JUDGING = [
    *_games(
        "digits",
        ("grouped", (16, 32), (1, 2)),
        ("grouped", (24, 24), (2, 2)),
        ("plain", (16, 24, 32), (4, 4, 4)),
        ("residual", (8, 16, 32), (3, 3, 3)),
    ),
    *_games("cifar16", ("grouped", (16, 32), (2, 2)), ("plain", (16, 24, 32), (3, 3, 3))),
]
"""Networks that the policy never sees while it learns."""


def load_data(name: str, cifar10: str | Path = "cifar10") -> DataSplits:
    """Load a data set of `RECIPES`.

    Args:
        name: digits, or cifar16 for CIFAR-10 at 16x16 pixels.
        cifar10: CIFAR-10 by its name or as an image folder.
    """
    if name == "digits":
        return load("digits")
    full = load(cifar10)
    halves = {part: _halved(getattr(full, part)) for part in ("train", "calibration", "reward", "test")}
    return DataSplits(name, full.classes, **halves, mean=full.mean, std=full.std, augmentation=full.augmentation)


def make_games(
    specs: Sequence[GameSpec], folder: Path, cifar10: str | Path = "cifar10", targets: Sequence[float] = TARGETS
) -> Iterator[tuple[str, FilterPruneEnv]]:
    """Yield name and game of every specification. Networks are trained once and kept.

    Args:
        specs: What to make.
        folder: Where trained networks are kept.
        cifar10: CIFAR-10 by its name or as an image folder.
        targets: Budgets of every game.
    """
    config = EnvConfig(target_macs=tuple(targets), rates=RATES, reward_images=REWARD_IMAGES, round_to=1)
    data = {name: load_data(name, cifar10) for name in dict.fromkeys(spec.data for spec in specs)}
    for spec in specs:
        splits = data[spec.data]
        yield spec.name, FilterPruneEnv.from_model(_network(spec, splits, folder), splits, config)


def _network(spec: GameSpec, data: DataSplits, folder: Path) -> nn.Module:
    """Return the trained network of a game."""
    model = spec.architecture.build(len(data.classes), data.image_shape[0])
    file = folder / f"{spec.name}.safetensors"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        run = RunOptions(checkpoint=file.with_suffix(".checkpoint"), title=f"training {spec.name}")
        model = fit(model, data, RECIPES[spec.data], run=run)
        save_tensors(file, {name: tensor.contiguous() for name, tensor in model.state_dict().items()})
        file.with_suffix(".checkpoint").unlink(missing_ok=True)
    load_weights(model, file)
    return model.eval()


def _halved(split: Split) -> TensorSplit:
    """Return the images at half of their resolution."""
    parts = [functional.avg_pool2d(part.float(), 2).round().to(torch.uint8) for part, _ in split.batches(5000)]
    return TensorSplit(torch.cat(parts), split.labels)
