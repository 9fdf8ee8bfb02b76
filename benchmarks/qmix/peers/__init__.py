"""QMIX of other projects, and ours, behind one small interface, so that all play the same games under the same terms.

What is equal for all: width of the agents' networks, embedding of the mixing network, discount, exploration schedule,
episodes in the replay and in a batch, updates for each episode, what agents see (observation and who they are; with a
GRU also their last action). What is each one's own: everything else, listed in its file.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pettingzoo import ParallelEnv

Env = ParallelEnv[str, Any, Any]


@dataclass(frozen=True)
class Settings:
    """What all implementations share."""

    steps: int
    """of every episode"""
    hidden_size: int = 64
    mixing_embed: int = 32
    gamma: float = 0.99
    batch_size: int = 32
    """episodes; TorchRL draws as many transitions instead"""
    buffer_size: int = 2000
    """episodes"""
    epsilon_start: float = 1.0
    epsilon_end: float = 0.05
    epsilon_episodes: int = 100
    updates_per_episode: int = 4


class Peer(Protocol):
    """One implementation on one game."""

    def collect(self, episodes: int) -> float:
        """Plays with exploration and keeps the episodes for replay; the mean return."""

    def draw(self) -> Any:
        """A batch from the replay."""

    def step(self, batch: Any) -> None:
        """One update, the target network's included."""

    def evaluate(self, env: Env, episodes: int) -> float:
        """Mean return of greedy episodes."""


PEERS = ("ours, GRU", "PyMARL, GRU", "ours, MLP", "TorchRL, MLP")


def make(name: str, env: Env, settings: Settings, seed: int, pymarl: Path | None, **options: Any) -> Peer:
    """`options`: `n_envs` and fields of QMIXConfig, for ours only."""
    if name.startswith("ours"):
        from .ours import Ours

        return Ours(env, settings, seed, recurrent=name.endswith("GRU"), **options)
    if name == "PyMARL, GRU":
        from .pymarl import PyMARL

        if pymarl is None:
            raise ValueError("PyMARL needs the path of a clone")
        return PyMARL(env, settings, seed, pymarl)
    if name == "TorchRL, MLP":
        from .torchrl import TorchRL

        return TorchRL(env, settings, seed)
    raise ValueError(f"{name!r} is none of {', '.join(PEERS)}")


def available(pymarl: Path | None) -> list[str]:
    """The implementations that can run here; a line says why another one cannot."""
    missing = {}
    if pymarl is None:
        missing["PyMARL, GRU"] = "give --pymarl the path of a clone"
    elif not (pymarl / "src" / "learners" / "q_learner.py").is_file():
        raise ValueError(
            f"{pymarl} has no src/learners/q_learner.py; --pymarl is the path of a clone of oxwhirl/pymarl"
        )
    if importlib.util.find_spec("torchrl") is None:
        missing["TorchRL, MLP"] = "pip install torchrl"
    for name, remedy in missing.items():
        print(f"{name}: left out; {remedy}")
    return [name for name in PEERS if name not in missing]
