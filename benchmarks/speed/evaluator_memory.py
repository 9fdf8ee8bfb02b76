"""Measure whether the evaluator's memory grows with the number of plans, apart from its memo of accuracies.

    python -m benchmarks.speed.evaluator_memory

Evaluates distinct random plans of small_cnn on few images of digits, so that many plans can be measured. Prints the
peak resident memory of the process (Linux) and the size of the memo, which holds plans and their accuracies.
"""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass

import numpy as np
import tyro
from tqdm import trange

from prune_env.common.command import one_line_errors
from prune_env.common.settings import Count, Settings
from prune_env.data import load
from prune_env.evaluation.config import EvaluationConfig
from prune_env.evaluation.live import LiveEvaluator
from prune_env.networks import create
from prune_env.pruning.problem import PruningProblem


@dataclass(frozen=True)
class Config(Settings):
    evaluations: Count = 100_000
    """Number of distinct plans."""
    measurements: Count = 10
    """Number of times that memory is measured."""


def main(config: Config) -> None:
    data, model = load("digits"), create("small_cnn", 10, 1).eval()
    settings = EvaluationConfig(reward_images=20, calibration_images=20)
    evaluator = LiveEvaluator(PruningProblem.create(model, data, settings), settings)
    filters, rng = np.array(evaluator.problem.full_plan), np.random.default_rng(0)
    every = max(1, config.evaluations // config.measurements)
    lines = ["| plans measured | peak memory, MiB | of it the memo |", "|---|---|---|"]
    for number in trange(1, config.evaluations + 1, mininterval=1):
        while evaluator.evaluations <= number:  # the constructor evaluates one plan
            evaluator.accuracy(tuple((1 + rng.integers(filters)).tolist()))
        if number % every == 0 or number == min(1000, every):
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # in KiB on Linux
            lines.append(f"| {number:,} | {peak:.1f} | {memo_size(evaluator) / 2**20:.1f} |")
    print("\n".join(lines))


def memo_size(evaluator: LiveEvaluator) -> int:
    """Return the bytes of the memo: its table, plans and accuracies. Python shares small integers, so they are free."""
    memo = evaluator.memory
    return sys.getsizeof(memo) + sum(sys.getsizeof(plan) + sys.getsizeof(value) for plan, value in memo.items())


if __name__ == "__main__":
    with one_line_errors():
        main(tyro.cli(Config, prog="python -m benchmarks.speed.evaluator_memory", description=__doc__))
