"""Labels: which filter an element of a tensor comes from, and which filters can only be removed together.

A label is a positive integer, one for each filter of each layer; 0 marks an element that no filter produced. Every
tensor of the network that depends on filters has a label tensor. It has as many dimensions, with length 1 along those
in which the labels do not change: a feature map [B, C, H, W] has labels [1, C, 1, 1].
"""

from __future__ import annotations

import torch


class Labels:
    """Creates labels, ties those that can only be removed together (union-find), and freezes those that must stay."""

    def __init__(self) -> None:
        self._parent = [0]
        self._reasons: dict[int, str] = {}

    def new(self, count: int) -> torch.Tensor:
        """Return new labels, int64 [count]."""
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return torch.arange(first, first + count)

    def tie(self, one: torch.Tensor, other: torch.Tensor) -> None:
        """Tie the labels at the same position of two tensors, whose shapes broadcast.

        Where one of two labels is 0, the other is frozen.
        """
        one, other = torch.broadcast_tensors(one, other)
        pairs = torch.stack((one.flatten(), other.flatten()), 1)
        for first, second in pairs[pairs[:, 0] != pairs[:, 1]].unique(dim=0).tolist():
            if first and second:
                low, high = sorted((self._find(first), self._find(second)))
                self._parent[high] = low
            else:
                self._reasons.setdefault(first or second, "they are combined with constants that cannot be cut")

    def freeze(self, labels: torch.Tensor, reason: str) -> None:
        """Mark filters that must stay. The first reason is kept."""
        for label in labels.unique().tolist():
            if label:
                self._reasons.setdefault(label, reason)

    def canonical(self, labels: torch.Tensor) -> torch.Tensor:
        """Return the tensor with each label replaced by the smallest label that it is tied to."""
        values, inverse = labels.unique(return_inverse=True)
        return torch.tensor([self._find(value) for value in values.tolist()])[inverse]

    def compressed(self, labels: torch.Tensor) -> torch.Tensor:
        """Return the canonical labels, with length 1 along every dimension in which they do not change."""
        labels = self.canonical(labels)
        for axis, length in enumerate(labels.shape):
            if length > 1 and bool((labels == labels.narrow(axis, 0, 1)).all()):
                labels = labels.narrow(axis, 0, 1)
        return labels

    def reasons(self) -> dict[int, str]:
        """Return the reason of every canonical label that is frozen."""
        found: dict[int, str] = {}
        for label, reason in self._reasons.items():  # in the order of freezing
            found.setdefault(self._find(label), reason)
        return found

    def _find(self, label: int) -> int:
        while self._parent[label] != label:
            self._parent[label] = self._parent[self._parent[label]]
            label = self._parent[label]
        return label


def aligned(labels: torch.Tensor, dimensions: int) -> torch.Tensor:
    """Return labels with as many dimensions, added at the front as in broadcasting."""
    return labels.view(*[1] * (dimensions - labels.ndim), *labels.shape)
