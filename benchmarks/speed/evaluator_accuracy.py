"""Compare the accuracies of the fast evaluator with exact ones, and their ranks, on random plans.

    python -m benchmarks.speed.evaluator_accuracy --network resnet20 --data PATH --weights resnet20.th --plans 50

Exact accuracies use the cut module in float32 and BatchNorm statistics of all positions. Fast accuracies are those of
the evaluator of environments. Both use the same calibration crops and reward images.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import mean
from typing import Annotated

import torch
import tyro
from tqdm import tqdm

from prune_env import EnvConfig
from prune_env.common.command import one_line_errors, require_packages
from prune_env.common.settings import Count, Seed, Settings
from prune_env.evaluation.measurer import BATCH_SIZES
from prune_env.game.arguments import ProblemArgs
from prune_env.scoring.batchnorm import even_batches, recalibrate
from prune_env.scoring.metric import accuracy

from ..compare.statistics import kendall


@dataclass(frozen=True)
class Config(Settings):
    problem: Annotated[ProblemArgs, tyro.conf.OmitArgPrefixes] = field(default_factory=ProblemArgs)
    """The network, its data, and where plans are evaluated."""
    plans: Count = 50
    """Number of random plans."""
    reward_images: Count = 1000
    """Images of the reward split on which an accuracy is measured, the same for every plan."""
    calibration_images: Count = 500
    """Images that BatchNorm statistics are re-estimated on."""
    seed: Seed = 0
    """Seed of the plans."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.problem.tabulated:
            raise ValueError("tabulated accuracies are not measured; leave out --tabulated")


def main(config: Config) -> None:
    require_packages(["scipy"], "Kendall's tau", "train")
    settings = EnvConfig(reward_images=config.reward_images, calibration_images=config.calibration_images)
    env = config.problem.make_env(settings)
    problem, data, device = env.problem, env.problem.data, config.problem.device
    reward = data.reward.balanced(config.reward_images)
    crops = problem.calibration_crops().to(device)

    def exact(plan: tuple[int, ...]) -> float:
        network = problem.build(plan).to(device)
        recalibrate(network, even_batches(crops, BATCH_SIZES["cpu"]))
        return accuracy(network, data, reward, device=device)

    generator = torch.Generator().manual_seed(config.seed)
    plans = [problem.full_plan]
    for _ in range(config.plans):
        least = 0.45 + 0.5 * float(torch.rand((), generator=generator))
        plans.append(
            tuple(
                int(torch.randint(max(1, int(least * g.filters)), g.filters + 1, (), generator=generator))
                for g in problem.groups
            )
        )
    pairs = [(env.evaluator.accuracy(plan), exact(plan)) for plan in tqdm(plans)]
    gaps = [100 * abs(fast - slow) for fast, slow in pairs]
    dtype = env.evaluator.task.dtype
    print(f"{config.problem.network}, {dtype} against float32, {len(reward)} reward images, in points of accuracy")
    print(f"original: {100 * pairs[0][0]:.2f} % and {100 * pairs[0][1]:.2f} %")
    print(f"{config.plans} random plans: mean difference {mean(gaps[1:]):.3f}, largest {max(gaps[1:]):.2f}")
    print(f"Kendall's tau-b of the ranks: {kendall(pairs[1:])[0]:.4f}")


if __name__ == "__main__":
    with one_line_errors():
        main(tyro.cli(Config, prog="python -m benchmarks.speed.evaluator_accuracy", description=__doc__))
