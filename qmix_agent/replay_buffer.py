"""Whole episodes, kept until newer ones push them out, and drawn as padded batches.

Shapes: B episodes in a batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from .config import QMIXConfig
from .types import Batch, Episode

_PER_STEP = ("actions", "rewards", "terminated")
_PER_MOMENT = ("observations", "states", "action_masks")
_LEAST_PRIORITY = 1e-6  # what is learned perfectly can still be drawn


class ReplayBuffer:
    """At most `capacity` episodes, oldest first. Episodes are of any length; padding happens when they are drawn.

    Each has a priority: the error it was last learned with, or, until it has been drawn, the largest there is.
    """

    def __init__(self, capacity: int, episodes: Iterable[Episode] = (), priorities: Iterable[float] = ()) -> None:
        self._episodes: deque[Episode] = deque(episodes, maxlen=capacity)
        self._priorities: deque[float] = deque(priorities, maxlen=capacity)

    def __len__(self) -> int:
        return len(self._episodes)

    def __iter__(self) -> Iterator[Episode]:
        return iter(self._episodes)

    def add(self, episode: Episode) -> None:
        """Keeps the episode; a full buffer drops its oldest."""
        self._episodes.append(episode)
        self._priorities.append(max(self._priorities, default=1.0))

    def sample(self, count: int, rng: np.random.Generator) -> list[Episode]:
        """`count` distinct episodes, or all there are."""
        chosen = rng.choice(len(self._episodes), size=min(count, len(self._episodes)), replace=False)
        return [self._episodes[index] for index in chosen]

    def sample_by_priority(
        self, count: int, alpha: float, beta: float, rng: np.random.Generator
    ) -> tuple[np.ndarray, list[Episode], np.ndarray]:
        """Indices for `set_priorities`, episodes, and weights of their losses, float32 [B].

        Schaul et al. 2016, arXiv:1511.05952: P(i) = p_i^alpha / sum_k p_k^alpha (equation 1), weights
        (n P(i))^-beta over the largest in the batch (section 3.4). Drawn with replacement, as the weights suppose.
        """
        powers = np.array(self._priorities) ** alpha
        chances = powers / powers.sum()
        chosen = rng.choice(len(chances), size=min(count, len(chances)), p=chances)
        weights = (len(chances) * chances[chosen]) ** -beta
        return chosen, [self._episodes[index] for index in chosen], (weights / weights.max()).astype(np.float32)

    def set_priorities(self, indices: Iterable[int], errors: Iterable[float]) -> None:
        """Takes the absolute errors that episodes were just learned with."""
        for index, error in zip(indices, errors, strict=True):
            self._priorities[index] = error + _LEAST_PRIORITY

    @property
    def priorities(self) -> list[float]:
        """One for each episode, oldest first."""
        return list(self._priorities)


def importance_at(config: QMIXConfig, episode: int) -> float:
    """The exponent of importance weights: linear from `priority_beta` to 1 over `epsilon_episodes`."""
    share = min(1.0, episode / config.epsilon_episodes) if config.epsilon_episodes else 1.0
    return config.priority_beta + (1.0 - config.priority_beta) * share


def pad(episodes: Sequence[Episode], device: torch.device | str = "cpu") -> Batch:
    """One batch, zeros after the end of each episode."""
    longest = max(len(episode) for episode in episodes)

    def padded(name: str, length: int) -> torch.Tensor:
        first = getattr(episodes[0], name)
        array = np.zeros((len(episodes), length, *first.shape[1:]), dtype=first.dtype)
        for row, episode in zip(array, episodes, strict=True):
            values = getattr(episode, name)
            row[: len(values)] = values
        # torch.tensor copies into torch's own aligned memory: the last bit of a product can depend on alignment.
        return torch.tensor(array, device=device)

    filled = np.zeros((len(episodes), longest), dtype=np.float32)
    for row, episode in zip(filled, episodes, strict=True):
        row[: len(episode)] = 1.0
    return Batch(
        observations=padded("observations", longest + 1),
        states=padded("states", longest + 1),
        action_masks=padded("action_masks", longest + 1),
        actions=padded("actions", longest),
        rewards=padded("rewards", longest),
        terminated=padded("terminated", longest).float(),
        filled=torch.tensor(filled, device=device),
    )


def to_tensors(episodes: Sequence[Episode]) -> dict[str, torch.Tensor]:
    """All episodes end to end, without padding, for a checkpoint."""
    if not episodes:
        return {}
    tensors = {
        name: torch.tensor(np.concatenate([getattr(episode, name) for episode in episodes]))
        for name in (*_PER_STEP, *_PER_MOMENT)
    }
    tensors["lengths"] = torch.tensor([len(episode) for episode in episodes])
    return tensors


def from_tensors(tensors: dict[str, torch.Tensor]) -> list[Episode]:
    """The inverse of `to_tensors`."""
    if not tensors:
        return []
    lengths = tensors["lengths"].cpu().numpy()
    parts = {}
    for names, extra in ((_PER_STEP, 0), (_PER_MOMENT, 1)):
        ends = np.cumsum(lengths + extra)[:-1]
        for name in names:
            parts[name] = np.split(tensors[name].cpu().numpy(), ends)
    return [Episode(**{name: parts[name][index] for name in parts}) for index in range(len(lengths))]
