"""Learn one pruning policy on many small networks.

    python -m benchmarks.policy.train --out runs/policy

Trains the networks of `games.LEARNING` first, if they are not in `networks`: minutes for those on digits, and hours
on two processors for those on CIFAR-10, which `data` switches on. Then plays `episodes` episodes, each on another
network and budget, and writes policy.safetensors to `out`. The same command resumes after an interruption.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from prune_env import FilterPruneSuite
from prune_env.common.command import check_writable, one_line_errors
from prune_env.common.settings import Count, Seed, Settings
from qmix_agent import QMIX, QMIXConfig
from qmix_agent.config import Mixer

from .games import LEARNING, make_games

PUBLISHED = Path(__file__).with_name("policy.safetensors")
"""The policy whose results are published: 12,000 episodes with seed 0."""
CONTINUED: dict[str, Any] = {
    "epsilon_start": 0.1,
    "epsilon_end": 0.1,
    "learning_starts": 8,
    "updates_per_episode": 8,
    "imagined_episodes": 64,
}
"""Settings of an agent that continues to learn from a policy on another network."""
PARALLEL = 8
"""Episodes that are played together, so that the agent network computes all their actions in one pass."""


@dataclass(frozen=True)
class Config(Settings):
    out: Path = Path("runs/policy")
    """Folder of checkpoints, metrics and the policy."""
    networks: Path = Path("runs/policy-networks")
    """Folder of the trained networks."""
    data: str | None = None
    """CIFAR-10 for the networks that are trained on it: cifar10, or a folder PATH/{train,test}/<class>/*. Without it
    the policy learns on digits alone."""
    episodes: Count = 20_000
    """Episodes to play."""
    mixer: Literal["pooled", "vdn"] = "pooled"
    """How agent values combine: pooled or vdn."""
    seed: Seed = 0
    """Seed of the agent."""


def main(config: Config) -> None:
    """Train networks and policy."""
    check_writable("out", config.out, folder=True)
    check_writable("networks", config.networks, folder=True)
    specs = [spec for spec in LEARNING if config.data is not None or spec.data == "digits"]
    suite = FilterPruneSuite(dict(make_games(specs, config.networks, config.data or "cifar10")))
    checkpoints = config.out / "checkpoints"
    agent = QMIX.load_or_new(checkpoints, suite, settings(config.episodes, config.mixer), config.seed)
    agent.learn(config.episodes, log_dir=config.out, checkpoint_dir=checkpoints, n_envs=PARALLEL)
    print(f"The policy is in {agent.save_policy(config.out / 'policy.safetensors')}")


def settings(episodes: int, mixer: Mixer = "pooled", **fields: Any) -> QMIXConfig:
    """Return the settings of the agent for so many episodes; `fields` override them."""
    defaults: dict[str, Any] = {
        "agent_id": False,
        "recurrent": False,
        "standardise_returns": True,
        "batch_size": 64,
        "buffer_size": 20_000,
        "learning_starts": min(500, episodes),
        "updates_per_episode": 1,
        "epsilon_episodes": episodes // 2,
        "eval_every": 0,
        "checkpoint_every": 1000,
    }
    return QMIXConfig(mixer=mixer, **(defaults | fields))


if __name__ == "__main__":
    with one_line_errors("Interrupted. The same command resumes."):
        main(tyro.cli(Config, prog="python -m benchmarks.policy.train", description=__doc__))
