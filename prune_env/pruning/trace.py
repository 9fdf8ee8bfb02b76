"""What a traced forward pass has shown: the labels of every tensor, and of the channels that each layer reads.

The tracer (`tracing.py`) creates a `Trace`, and the rules of the operations (the folder `rules`) write to it.
Letters: C channels, K filters.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from .groups import Side, named
from .labels import Labels
from .modules import computes, refusal

AUTOCAST = (
    "computes with a cast copy of its weight, as torch.autocast within forward does; use autocast around calls of the "
    "network instead"
)


class Trace:
    """Labels of tensors and of module sides.

    `trace[tensor]` is the label tensor of a tensor of the network, None if no filter contributes to it.
    """

    modules: dict[str, nn.Module]
    """Path -> module of the traced copy of the network."""
    labels: Labels
    """All labels, and which of them are tied or frozen."""
    slots: dict[tuple[str, Side], torch.Tensor]
    """(path, side) -> labels of the channels on that side of a module, int64 [C]."""
    produced: dict[str, torch.Tensor]
    """Path -> labels of the filters of a layer, int64 [K], in the order of the first calls."""
    called: dict[str, None]
    """Paths of the modules that ran, in the order of their first calls."""
    borrowed: set[str]
    """Paths of modules whose parameters are used while another module runs."""
    enclosed: dict[str, str]
    """Path of a module that ran inside a module that is traced as a whole -> path of the latter."""
    pointwise: set[str]
    """Paths of linear layers that ran at every position of a feature map, like 1x1 convolutions."""
    untraced: str | None
    """Why branches that only run in training could not be traced; None if they were traced or do not exist."""

    def __init__(self, network: nn.Module) -> None:
        self.modules = dict(network.named_modules())
        self.labels = Labels()
        self.slots, self.produced, self.called = {}, {}, {}
        self.borrowed, self.enclosed, self.pointwise = set(), {}, set()
        self.untraced = None
        self.stack = [""]
        """Paths of the modules that run now, the innermost last."""
        self.cast = WeakIdKeyDictionary()
        """Copies of parameters in another precision."""
        self._tensor_labels = WeakIdKeyDictionary()
        self._owner, self._shared = _owners(self.modules)
        self._names = {id(tensor): name for name, tensor in [*network.named_parameters(), *network.named_buffers()]}

    def __getitem__(self, tensor: torch.Tensor) -> torch.Tensor | None:
        return self._tensor_labels.get(tensor)

    def __setitem__(self, tensor: torch.Tensor, labels: torch.Tensor | None) -> None:
        if labels is None:
            self._tensor_labels.pop(tensor, None)
        else:
            self._tensor_labels[tensor] = self.labels.compressed(labels)

    def labels_of(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the labels of a tensor that has some.

        Raises:
            ValueError: It has none.
        """
        labels = self[tensor]
        if labels is None:
            raise ValueError("the tensor has no labels")
        return labels

    @property
    def running(self) -> str:
        """Path of the innermost module that runs now."""
        return self.stack[-1]

    def freeze(self, tensor: Any, reason: str) -> None:
        """Mark all filters that contribute to a tensor as filters that must stay."""
        labels = self[tensor] if isinstance(tensor, torch.Tensor) else None
        if labels is not None:
            self.labels.freeze(labels, reason)

    def along(self, tensor: torch.Tensor, axis: int, reason: str) -> torch.Tensor | None:
        """Return the labels along one dimension of a tensor, [C].

        Returns None for a tensor without labels, and for one whose labels also change along another dimension; the
        latter are frozen for the given reason.
        """
        labels = self[tensor]
        if labels is None:
            return None
        labels = self.labels.compressed(labels)
        if any(length > 1 for place, length in enumerate(labels.shape) if place != axis % tensor.ndim):
            self.labels.freeze(labels, reason)
            return None
        return labels.flatten().expand(tensor.shape[axis])

    def name(self, tensor: torch.Tensor) -> str | None:
        """Return the name of a parameter or buffer of the network, None for any other tensor."""
        return self._names.get(id(tensor))

    def owner_of(self, tensor: torch.Tensor) -> str | None:
        """Return the path of the module that a parameter or buffer belongs to, None for any other tensor."""
        return self._owner.get(id(tensor))

    def owner(self, *tensors: torch.Tensor | None) -> tuple[str, str | None]:
        """Return the path of the module that given parameters and buffers belong to, and why it cannot be cut, if so.

        Args:
            *tensors: Weights and statistics that an operation was called with.
        """
        given = {id(tensor) for tensor in tensors if tensor is not None}
        running = self.modules[self.running]
        own = {id(tensor) for tensor in (*running._parameters.values(), *running._buffers.values())}
        if given <= own:
            return self.running, self.why_uncut(self.running)
        paths = {self._owner.get(tensor) for tensor in given}
        if len(paths) > 1 or None in paths:
            cast = any(tensor in self.cast for tensor in tensors if tensor is not None)
            return self.running, f"{named(self.running)} {AUTOCAST if cast else computes('weight', running)}"
        path = str(paths.pop())
        if path != self.running:
            return path, f"parameters of {named(path)} are used outside of it"
        return path, self.why_uncut(path)

    def why_uncut(self, path: str) -> str | None:
        """Return why a module cannot be cut, None if it can."""
        if path in self._shared:
            return f"{named(path)} shares a parameter with {named(self._shared[path])}"
        reason = refusal(self.modules[path])
        return f"{named(path)} {reason}" if reason else None

    def read(self, path: str, side: Side, labels: torch.Tensor) -> None:
        """Record the labels of the channels on a module's side, [C]; those of a second call are tied to the first."""
        known = self.slots.setdefault((path, side), labels)
        if known is not labels:
            self.labels.tie(known, labels)

    def produce(self, path: str, count: int) -> torch.Tensor:
        """Return the labels of a layer's filters, int64 [K]; they are the same at every call."""
        if path not in self.produced:
            self.produced[path] = self.labels.new(count)
            self.slots[(path, "out")] = self.produced[path]
        return self.produced[path]


def _owners(modules: dict[str, nn.Module]) -> tuple[dict[int, str], dict[str, str]]:
    """Id of a parameter or buffer -> path of its module; path of a module -> path of one that it shares such with."""
    owner: dict[int, str] = {}
    shared: dict[str, str] = {}
    for path, module in modules.items():
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            first = owner.setdefault(id(tensor), path)
            if first != path:
                shared[path], shared[first] = first, path
    return owner, shared
