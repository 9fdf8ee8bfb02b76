"""Refuse copies of a network that compute with tensors of the original.

`references` searches what the code names. The rest is only found while a copy runs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .errors import PruningError


class OriginalReached(PruningError):
    """A copy of a network computes with a tensor of the original."""


class OwnTensors(TorchDispatchMode):
    """Refuse every operation on a parameter or buffer of the original while a copy with tensors of its own runs.

    Args:
        original: The original network.

    Raises:
        OriginalReached: The copy computed with a tensor of the original; the message names it.
    """

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self._reached: str | None = None
        self._names = {_storage(t): name for name, t in (*original.named_parameters(), *original.named_buffers())}
        self._names.pop(None, None)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, torch.Tensor) and (name := self._names.get(_storage(leaf))) is not None:
                self._reached = name
                self._refuse()
        return func(*args, **kwargs)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        super().__exit__(kind, error, trace)
        if error is None or not isinstance(error, OriginalReached):  # the network may have caught it
            self._refuse()

    def _refuse(self) -> None:
        if self._reached is not None:
            raise OriginalReached(
                f"a copy of the network computes with {self._reached.rpartition('.')[0] or self._reached} of the "
                "original, which it reaches through an object that copies share, such as a function, a class attribute "
                "or an object with a __deepcopy__ of its own; call the layer through self"
            )


def _storage(tensor: torch.Tensor) -> int | None:
    """Identity of a tensor's memory; None if it has none, as sparse tensors."""
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):
        return None
