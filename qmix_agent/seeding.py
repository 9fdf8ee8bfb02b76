"""Random numbers as a function of (seed, stream, index).

Every episode and every update has its own generator, made from its number. So there is no generator to save, and an
agent that resumes at episode n draws what it would have drawn.
"""

from __future__ import annotations

import enum

import numpy as np


class Stream(enum.IntEnum):
    """Independent sources of randomness."""

    WEIGHTS = 0
    TRAINING = 1
    """Seeds of the environment in training episodes."""
    EVALUATION = 2
    """Seeds of the environment in greedy episodes."""
    EXPLORATION = 3
    REPLAY = 4
    ACTING = 5
    """Exploration in `QMIX.act`."""
    NOISE = 6
    """Noise in the weights of noisy agents, in training episodes."""
    LEARNING_NOISE = 7
    """The same in updates."""


def generator(seed: int, stream: Stream, index: int = 0) -> np.random.Generator:
    """The generator of one episode or update."""
    return np.random.default_rng(np.random.SeedSequence([seed, int(stream), index]))


def integer(seed: int, stream: Stream, index: int = 0) -> int:
    """A seed below 2**31, for those who take a plain number."""
    return int(np.random.SeedSequence([seed, int(stream), index]).generate_state(1)[0]) & 0x7FFFFFFF
