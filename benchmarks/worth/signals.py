"""What a search can measure of a pruned network before it is trained fully."""

from __future__ import annotations

from functools import lru_cache

from torch import nn
from torch.nn import functional as F

from prune_env import FilterPruneEnv
from prune_env.data import Split
from prune_env.pruning.problem import PruningProblem
from prune_env.scoring.metric import BATCH_SIZE, Network, accuracy
from prune_env.training.finetune import Finetuner

SIGNALS = {
    "output_change": "predicted change of the outputs",
    "search_accuracy": "accuracy as cut, images of a search",
    "accuracy": "accuracy as cut",
    "cross_entropy": "cross-entropy as cut",
    "finetuned_accuracy": "accuracy after ten batches",
    "finetuned_cross_entropy": "cross-entropy after ten batches",
}
"""What is known of a network before it is trained. The predicted change needs no look at an accuracy."""
LOWER_IS_BETTER = ("output_change", "cross_entropy", "finetuned_cross_entropy")
BATCHES = 10
"""Batches of the short finetuning."""


def measure(env: FilterPruneEnv, network: nn.Module) -> dict[str, float]:
    """Measure a pruned network with recalibrated BatchNorm.

    Returns:
        `search_accuracy` on the reward images of a search, `accuracy` and `cross_entropy` on the whole reward split,
        and the latter two after ten batches of distillation.
    """
    problem = env.problem
    tuned = _finetuner(problem)(network)
    env.evaluator.recalibrate(tuned)
    found = {"search_accuracy": env.evaluator.accuracy_of(network)}
    for prefix, one in (("", network), ("finetuned_", tuned.eval())):
        found[f"{prefix}accuracy"] = accuracy(one, problem.data, problem.data.reward, problem.metric)
        found[f"{prefix}cross_entropy"] = accuracy(one, problem.data, problem.data.reward, cross_entropy)
    return found


def cross_entropy(network: Network, split: Split) -> float:
    """Return the mean cross-entropy of a split's images."""
    total = sum(
        float(F.cross_entropy(network(images), labels, reduction="sum")) for images, labels in split.batches(BATCH_SIZE)
    )
    return total / len(split)


@lru_cache(maxsize=1)
def _finetuner(problem: PruningProblem) -> Finetuner:
    return Finetuner(problem, BATCHES)
