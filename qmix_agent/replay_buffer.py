"""Replay buffer of whole episodes, and their conversion to padded batches and to checkpoint tensors.

Shapes: B episodes, T steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from .types import Batch, Episode

_STEP_FIELDS = ("actions", "rewards", "terminated")  # T entries
_MOMENT_FIELDS = ("observations", "states", "action_masks", "present")  # T + 1 entries


class ReplayBuffer:
    """The most recent episodes, oldest first. Episodes may differ in length.

    Args:
        capacity: Maximum number of episodes.
        episodes: Initial content, oldest first.
    """

    def __init__(self, capacity: int, episodes: Iterable[Episode] = ()) -> None:
        self._episodes: deque[Episode] = deque(episodes, maxlen=capacity)

    def __len__(self) -> int:
        return len(self._episodes)

    def __iter__(self) -> Iterator[Episode]:
        return iter(self._episodes)

    def add(self, episode: Episode) -> None:
        """Add an episode; a full buffer drops its oldest."""
        self._episodes.append(episode)

    def sample(self, count: int, rng: np.random.Generator) -> list[Episode]:
        """Return `count` distinct random episodes, or all if there are fewer."""
        chosen = rng.choice(len(self._episodes), size=min(count, len(self._episodes)), replace=False)
        return [self._episodes[index] for index in chosen]


def make_batch(episodes: Sequence[Episode], device: torch.device | str = "cpu") -> Batch:
    """Stack episodes into one batch, with zeros after the end of each episode."""
    longest = max(len(episode) for episode in episodes)

    def padded(name: str, length: int) -> torch.Tensor:
        first = getattr(episodes[0], name)
        array = np.zeros((len(episodes), length, *first.shape[1:]), dtype=first.dtype)
        for row, episode in zip(array, episodes, strict=True):
            values = getattr(episode, name)
            row[: len(values)] = values
        # torch.tensor copies into aligned memory: the last bit of a matrix product can depend on alignment.
        return torch.tensor(array, device=device)

    filled = np.zeros((len(episodes), longest), dtype=np.float32)
    for row, episode in zip(filled, episodes, strict=True):
        row[: len(episode)] = 1.0
    return Batch(
        observations=padded("observations", longest + 1),
        states=padded("states", longest + 1),
        action_masks=padded("action_masks", longest + 1),
        present=padded("present", longest + 1).float(),
        actions=padded("actions", longest),
        rewards=padded("rewards", longest),
        terminated=padded("terminated", longest).float(),
        filled=torch.tensor(filled, device=device),
    )


def episodes_to_tensors(episodes: Sequence[Episode]) -> dict[str, torch.Tensor]:
    """Concatenate all episodes without padding, for a checkpoint."""
    if not episodes:
        return {}
    tensors = {
        name: torch.tensor(np.concatenate([getattr(episode, name) for episode in episodes]))
        for name in (*_STEP_FIELDS, *_MOMENT_FIELDS)
    }
    tensors["lengths"] = torch.tensor([len(episode) for episode in episodes])
    return tensors


def tensors_to_episodes(tensors: dict[str, torch.Tensor]) -> list[Episode]:
    """Return the episodes that `episodes_to_tensors` concatenated.

    Raises:
        ValueError: The lengths do not fit the other tensors.
    """
    if not tensors:
        return []
    lengths = tensors["lengths"].cpu().numpy()
    if lengths.ndim != 1 or lengths.min() < 1:
        raise ValueError(f"lengths of episodes are 1 or more, got {lengths.min()}")
    parts = {}
    for names, extra in ((_STEP_FIELDS, 0), (_MOMENT_FIELDS, 1)):
        ends = np.cumsum(lengths + extra)[:-1]
        for name in names:
            if len(tensors[name]) != (expected := (lengths + extra).sum()):
                raise ValueError(f"{name} of all episodes have {len(tensors[name])} entries, their lengths {expected}")
            parts[name] = np.split(tensors[name].cpu().numpy(), ends)
    return [Episode(**{name: parts[name][index] for name in parts}) for index in range(len(lengths))]
