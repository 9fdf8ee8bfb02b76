"""Random numbers as a function of (seed, stream, index).

Every episode and every update has its own generator, made from its number. No generator state has to be saved: an
agent that resumes at episode n draws the same numbers as one that never stopped.
"""

from __future__ import annotations

import enum

import numpy as np


class Stream(enum.IntEnum):
    """Independent sources of randomness."""

    WEIGHTS = 0
    """Initial weights of the networks."""
    TRAINING = 1
    """Seeds for the environment's reset in training episodes."""
    EVALUATION = 2
    """Seeds for the environment's reset in greedy episodes."""
    EXPLORATION = 3
    """Exploration in training episodes."""
    REPLAY = 4
    """Episodes sampled for an update."""
    ACTING = 5
    """Exploration in `QMIX.act`."""
    PLANNING = 6
    """Exploration in imagined episodes, and the choice among them."""


def make_generator(seed: int, stream: Stream, index: int = 0) -> np.random.Generator:
    """Return the random generator of one episode or update."""
    return np.random.default_rng(np.random.SeedSequence([seed, int(stream), index]))


def make_seed(seed: int, stream: Stream, index: int = 0) -> int:
    """Return an integer seed below 2**31 for one episode, or for libraries that take an integer."""
    return int(np.random.SeedSequence([seed, int(stream), index]).generate_state(1)[0]) & 0x7FFFFFFF
