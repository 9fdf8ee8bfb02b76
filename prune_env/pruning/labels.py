"""Labels: which filter an element of a tensor comes from, and which filters can only go together.

A label is a positive integer, one for each filter of each layer; 0 is an element that no filter made. A label tensor
stands beside a tensor of the network. It has the same number of dimensions, and length 1 along those in which the
labels do not change: a feature map [B, C, H, W] carries labels [1, C, 1, 1].
"""

from __future__ import annotations

import torch


class Labels:
    """Hands out labels, ties them to each other (union-find), and freezes those that must stay."""

    def __init__(self) -> None:
        self._parent = [0]
        self._reasons: dict[int, str] = {}

    def new(self, count: int) -> torch.Tensor:
        """`count` fresh labels, int64 [count]."""
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return torch.arange(first, first + count)

    def tie(self, one: torch.Tensor, other: torch.Tensor) -> None:
        """Elements at one place (the shapes broadcast) go together; where one of them is 0, the other must stay."""
        one, other = torch.broadcast_tensors(one, other)
        pairs = torch.stack((one.flatten(), other.flatten()), 1)
        for first, second in pairs[pairs[:, 0] != pairs[:, 1]].unique(dim=0).tolist():
            if first and second:
                low, high = sorted((self._find(first), self._find(second)))
                self._parent[high] = low
            else:
                self._reasons.setdefault(first or second, "they meet constants that would not follow")

    def freeze(self, labels: torch.Tensor, reason: str) -> None:
        """The filters stay, and why; the first reason counts."""
        for label in labels.unique().tolist():
            if label:
                self._reasons.setdefault(label, reason)

    def canonical(self, labels: torch.Tensor) -> torch.Tensor:
        """The same tensor with one label, the smallest, for all filters that are tied."""
        values, places = labels.unique(return_inverse=True)
        return torch.tensor([self._find(value) for value in values.tolist()])[places]

    def compressed(self, labels: torch.Tensor) -> torch.Tensor:
        """The canonical labels, with length 1 along every dimension in which they do not change."""
        labels = self.canonical(labels)
        for axis, length in enumerate(labels.shape):
            if length > 1 and bool((labels == labels.narrow(axis, 0, 1)).all()):
                labels = labels.narrow(axis, 0, 1)
        return labels

    def reasons(self) -> dict[int, str]:
        """Canonical label -> why it stays, for all that are frozen."""
        found: dict[int, str] = {}
        for label, reason in self._reasons.items():  # in the order of freezing
            found.setdefault(self._find(label), reason)
        return found

    def _find(self, label: int) -> int:
        while self._parent[label] != label:
            self._parent[label] = self._parent[self._parent[label]]
            label = self._parent[label]
        return label
