"""Where the time of a search goes: evaluating plans, learning, imagining episodes, and the rest.

    python -m benchmarks.speed.search --network resnet20 --data cifar10 --weights FILE

Plays QMIX with the settings of the comparison, without and with planning, for `plans` episodes, which end with distinct
plans with few exceptions. Prints a Markdown table of seconds. The rest is acting, the game's rules, and the buffer.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
import tyro

from prune_env import EnvConfig
from prune_env.common.command import one_line_errors
from prune_env.common.settings import Count, Settings
from prune_env.evaluation.live import LiveEvaluator
from prune_env.game.arguments import ProblemArgs
from qmix_agent import QMIX
from qmix_agent.learner import Learner
from qmix_agent.planning import Planner

from ..compare.methods import qmix

PARTS = {"evaluating": (LiveEvaluator, "accuracy"), "learning": (Learner, "update"), "imagining": (Planner, "plan")}
"""Part -> the method whose calls take its time."""
SEARCHES: dict[str, dict[str, Any]] = {"no planning": {}, "planning": qmix.PLANNING}
"""Settings of each search."""


@dataclass(frozen=True)
class Config(Settings):
    problem: Annotated[ProblemArgs, tyro.conf.OmitArgPrefixes] = field(default_factory=ProblemArgs)
    """The network and its data. Without a cache, so that plans are evaluated."""
    env: Annotated[EnvConfig, tyro.conf.OmitArgPrefixes] = field(
        default_factory=lambda: EnvConfig(target_macs=0.5, rates=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6), round_to=1)
    )
    """The game."""
    plans: Count = 300
    """Episodes of a search."""


def main(config: Config) -> None:
    """Run both searches, and print where their time went."""
    print(f"{torch.get_num_threads()} threads, device {config.problem.device}")
    print(f"| search | seconds | {' | '.join(PARTS)} | rest | updates |")
    print("|---" * (len(PARTS) + 4) + "|")
    for name, fields in SEARCHES.items():
        env = config.problem.make_env(config.env)
        env.evaluator.accuracy(env.problem.full_plan)  # the first evaluation prepares the network
        agent = QMIX(env, qmix.config(config.plans, **qmix.SETTINGS, **fields), 0, config.problem.device)
        seconds = dict.fromkeys(PARTS, 0.0)
        started = time.perf_counter()
        with measured(seconds):
            agent.learn(config.plans, progress=False)
        total = time.perf_counter() - started
        env.close()
        cells = [total, *seconds.values(), total - sum(seconds.values())]
        print(
            f"| {name} | {' | '.join(f'{cell:.1f}' for cell in cells)} | {agent.trainer.learner.updates} |", flush=True
        )


@contextmanager
def measured(seconds: dict[str, float]) -> Iterator[None]:
    """Add the time of all calls of the methods of `PARTS` to `seconds`, within a block."""
    originals = {part: getattr(owner, method) for part, (owner, method) in PARTS.items()}

    def timed(part: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return originals[part](*args, **kwargs)
            finally:
                seconds[part] += time.perf_counter() - started

        return call

    try:
        for part, (owner, method) in PARTS.items():
            setattr(owner, method, timed(part))
        yield
    finally:
        for part, (owner, method) in PARTS.items():
            setattr(owner, method, originals[part])


if __name__ == "__main__":
    with one_line_errors("Interrupted."):
        main(tyro.cli(Config, prog="python -m benchmarks.speed.search", description=__doc__))
