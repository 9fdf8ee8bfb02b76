"""Compare the accuracies of the fast evaluator with exact ones, and their ranks, on random plans.

    python -m benchmarks.speed.evaluator_accuracy --network resnet20 --data PATH --weights resnet20.th --plans 50

Exact accuracies use the cut module in float32 and BatchNorm statistics of all positions. Fast accuracies are those of
the evaluator of environments. Both use the same calibration crops and reward images.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import torch
import tyro
from tqdm import tqdm

from prune_env.common.command import one_line_errors, require_packages
from prune_env.common.device import fast_dtype
from prune_env.common.settings import Count, Seed, Settings
from prune_env.data import load
from prune_env.evaluation.config import EvaluationConfig
from prune_env.evaluation.live import LiveEvaluator
from prune_env.evaluation.measurer import BATCH_SIZES
from prune_env.pruning.problem import PruningProblem
from prune_env.scoring.batchnorm import even_batches, recalibrate
from prune_env.scoring.metric import accuracy
from prune_env.training.pretrained import check_names, pretrained, with_network_normalisation

from ..compare.statistics import kendall


@dataclass(frozen=True)
class Config(Settings):
    network: str = "small_cnn"
    """small_cnn (for digits), alexnet, vgg16, resnet20 or resnet56."""
    data: str = "digits"
    """digits, cifar10, cifar100, or a folder PATH/{train,test}/<class>/*."""
    weights: Path | None = None
    """File with trained weights. Without it the network is trained once and cached."""
    plans: Count = 50
    """Number of random plans."""
    reward_images: Count = 1000
    """Number of images of an accuracy."""
    calibration_images: Count = 500
    """Number of images of BatchNorm statistics."""
    seed: Seed = 0
    """Seed of the plans."""


def main(config: Config) -> None:
    require_packages(["scipy"], "Kendall's tau", "train")
    check_names(config.network, config.weights)
    data = with_network_normalisation(config.network, load(config.data))
    model = pretrained(config.network, data, config.weights).eval()
    settings = EvaluationConfig(reward_images=config.reward_images, calibration_images=config.calibration_images)
    problem = PruningProblem.create(model, data, settings)
    evaluator = LiveEvaluator(problem, settings)
    reward = data.reward.balanced(config.reward_images)
    crops = problem.calibration_crops()

    def exact(plan: tuple[int, ...]) -> float:
        network = problem.build(plan)
        recalibrate(network, even_batches(crops, BATCH_SIZES["cpu"]))
        return accuracy(network, data, reward)

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
    pairs = [(evaluator.accuracy(plan), exact(plan)) for plan in tqdm(plans)]
    gaps = [100 * abs(fast - slow) for fast, slow in pairs]
    print(f"{config.network}, {fast_dtype()} against float32, {len(reward)} reward images, in points of accuracy")
    print(f"original: {100 * pairs[0][0]:.2f} % and {100 * pairs[0][1]:.2f} %")
    print(f"{config.plans} random plans: mean difference {mean(gaps[1:]):.3f}, largest {max(gaps[1:]):.2f}")
    print(f"Kendall's tau-b of the ranks: {kendall(pairs[1:])[0]:.4f}")


if __name__ == "__main__":
    with one_line_errors():
        main(tyro.cli(Config, prog="python -m benchmarks.speed.evaluator_accuracy", description=__doc__))
