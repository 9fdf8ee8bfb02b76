"""QMIX of other projects and of `qmix_agent` behind one interface, so that all play the same games.

Equal for all: width of the agent networks, embedding of the mixing network, discount, exploration schedule, episodes in
the replay buffer and in a batch, updates per episode, and agent inputs (observation and agent identity; with a GRU also
the last action). Everything else is each project's own choice and is listed in its file.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pettingzoo import ParallelEnv

from prune_env.common import settings
from prune_env.common.settings import Count, Fraction, Whole

Env = ParallelEnv[str, Any, Any]


@dataclass(frozen=True)
class Settings(settings.Settings):
    """Settings that all implementations share."""

    steps: Count
    """Length of every episode."""
    hidden_size: Count = 64
    """Width of the agent networks."""
    mixing_embed: Count = 32
    """Width of the mixing network's hidden layer."""
    gamma: Fraction = 0.99
    """Discount factor."""
    batch_size: Count = 32
    """Episodes in a batch; TorchRL draws the same number of transitions instead."""
    buffer_size: Count = 2000
    """Episodes in the replay buffer."""
    epsilon_start: Fraction = 1.0
    """Epsilon in the first episode."""
    epsilon_end: Fraction = 0.05
    """Epsilon after `epsilon_episodes`."""
    epsilon_episodes: Whole = 100
    """Episodes over which epsilon falls linearly."""
    updates_per_episode: Count = 4
    """Updates after each episode."""


class Peer(Protocol):
    """One implementation on one game."""

    def collect(self, episodes: int) -> float:
        """Play with exploration, add the episodes to the replay buffer, and return the mean return."""

    def draw(self) -> Any:
        """Draw a batch from the replay buffer."""

    def step(self, batch: Any) -> None:
        """Take one update, including the update of the target network."""

    def evaluate(self, env: Env, episodes: int) -> float:
        """Return the mean return of greedy episodes."""


PEERS = ("ours, GRU", "PyMARL, GRU", "ours, MLP", "TorchRL, MLP")


def make_peer(name: str, env: Env, settings: Settings, seed: int, pymarl: Path | None, **options: Any) -> Peer:
    """Make one implementation.

    Args:
        name: One of `PEERS`.
        env: The game to train on.
        settings: Settings that all implementations share.
        seed: Seed of all randomness.
        pymarl: Path of a clone of oxwhirl/pymarl; only PyMARL needs it.
        **options: `n_envs` and fields of QMIXConfig; only for `qmix_agent` ("ours").

    Returns:
        The implementation.

    Raises:
        ValueError: The name is unknown, or PyMARL has no clone.
    """
    if name.startswith("ours"):
        from .ours import Ours

        return Ours(env, settings, seed, recurrent=name.endswith("GRU"), **options)
    if name == "PyMARL, GRU":
        from .pymarl import PyMARL

        if pymarl is None:
            raise ValueError("PyMARL needs the path of a clone; give --pymarl")
        return PyMARL(env, settings, seed, pymarl)
    if name == "TorchRL, MLP":
        from .torchrl import TorchRL

        return TorchRL(env, settings, seed)
    raise ValueError(f"name must be one of {', '.join(PEERS)}; got {name!r}")


def available_peers(pymarl: Path | None) -> list[str]:
    """Return the implementations that can run here. For each other one, print what it needs."""
    missing = {}
    if pymarl is None:
        missing["PyMARL, GRU"] = "give --pymarl the path of a clone"
    elif not (pymarl / "src" / "learners" / "q_learner.py").is_file():
        raise ValueError(f"--pymarl must be a clone of oxwhirl/pymarl, but {pymarl} has no src/learners/q_learner.py")
    if importlib.util.find_spec("torchrl") is None:
        missing["TorchRL, MLP"] = "pip install torchrl"
    for name, remedy in missing.items():
        print(f"{name} is left out; to include it, {remedy}")
    return [name for name in PEERS if name not in missing]
