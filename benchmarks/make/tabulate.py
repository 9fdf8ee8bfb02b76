"""Evaluate every plan of the tabulated problem once and write the file that the package ships.

    python -m benchmarks.make.tabulate

The network is trained (or taken from the user's cache) and its parameters are rounded to float16, which halves the
file. The table contains all plans that can end an episode: every count is a multiple of `round_to`, and the MACs are at
most the target and at least the target minus the budget's tolerance. It also contains the plans that cut one group.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from tqdm import tqdm

from prune_env import EnvConfig, FilterPruneEnv
from prune_env.common.command import check_writable, one_line_errors
from prune_env.common.settings import Count, Settings
from prune_env.data import load
from prune_env.evaluation.resources import Resources
from prune_env.game.budget import Target
from prune_env.game.tabulated import FILE, FIXED, Table, images_fingerprint
from prune_env.training.pretrained import pretrained


@dataclass(frozen=True)
class Config(Settings):
    out: Path = FILE
    """File of the table."""
    targets: tuple[Target, ...] = (0.5, 0.3, 0.2)
    """Fractions of the MACs that may stay."""
    round_to: Count = 4
    """Filter counts are multiples of this number."""
    cache: Path | None = None
    """File of measured accuracies, with which an interrupted run resumes."""


def main(config: Config) -> None:
    check_writable("out", config.out)
    resources = Resources(cache=config.cache)  # checked before the network is trained
    data = load("digits")
    model = pretrained("small_cnn", data)
    weights = {
        name: tensor.numpy().astype(np.float16 if tensor.is_floating_point() else tensor.numpy().dtype)
        for name, tensor in model.state_dict().items()
    }
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    env = FilterPruneEnv.from_model(model, data, EnvConfig(round_to=config.round_to), resources=resources)
    images = len(data.reward.balanced(env.config.reward_images))

    grid = itertools.product(*(range(config.round_to, count + 1, config.round_to) for count in env.problem.full_plan))
    plans = np.array(list(grid))
    macs = env.problem.cost.macs(plans)
    limits = [env.budgets.of(target).cost_range for target in config.targets]
    meets = [(fewest <= macs) & (macs <= most) for fewest, most in limits]
    meets.append((plans < env.problem.full_plan).sum(1) <= 1)
    wanted = np.stack(meets)  # [T + 1, P]; a plan belongs to the first target that it meets
    plans, target = plans[wanted.any(0)], wanted.argmax(0)[wanted.any(0)]
    accuracies = [env.evaluator.accuracy(tuple(plan)) for plan in tqdm(plans.tolist(), unit="plan")]
    settings = {name: getattr(env.config, name) for name in FIXED} | {
        "network": "small_cnn",
        "data": data.name,
        "fingerprint": images_fingerprint(data),
        "channels": data.image_shape[0],
        "classes": len(data.classes),
        "targets": config.targets,
        "images": images,
        "original_correct": round(env.evaluator.original_accuracy * images),
        "made_with": f"torch {torch.__version__}, {env.evaluator.task.dtype}",
    }
    correct = np.rint(np.array(accuracies) * images).astype(np.uint16)
    Table(settings, weights, plans.astype(np.uint8), target.astype(np.uint8), correct).save(config.out)
    print(f"{config.out}: {len(plans)} plans, {config.out.stat().st_size / 1024:.0f} KiB")
    for number, fraction in enumerate(config.targets):
        mine = correct[target == number] / images
        print(f"target {fraction}: {len(mine)} plans, accuracy from {mine.min():.4f} to {mine.max():.4f}")


if __name__ == "__main__":
    with one_line_errors():
        main(tyro.cli(Config, prog="python -m benchmarks.make.tabulate", description=__doc__))
