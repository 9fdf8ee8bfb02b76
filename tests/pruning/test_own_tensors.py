"""Copies that compute with tensors of the original are refused by name, also where no code names them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from small_networks import IMAGES, Direct

from prune_env.data import DataSplits
from prune_env.pruning import PruningError, inspect
from prune_env.pruning.problem import PruningProblem


def hidden(self: Direct, x: torch.Tensor) -> object:
    return getattr(self, "tab" + "le")["bn"](x)


def hidden_in_training(self: Direct, x: torch.Tensor) -> object:
    return getattr(self, "tab" + "le")["bn"](x) if self.training else self.bn(x)


def hidden_view(self: Direct, x: torch.Tensor) -> object:
    return self.bn(x) * getattr(self, "tab" + "le")["view"][:, None, None]


def hidden_and_caught(self: Direct, x: torch.Tensor) -> object:
    try:
        return getattr(self, "tab" + "le")["bn"](x)
    except ValueError:
        return x


@pytest.mark.parametrize("norm", [hidden, hidden_in_training, hidden_view, hidden_and_caught])
def test_no_copy_computes_with_tensors_of_the_original(norm: Callable[..., object], digits: DataSplits) -> None:
    model = Direct(1, 10).train()
    table = {"bn": model.bn, "view": model.bn.weight.data}
    model.__class__ = type("Reaching", (Direct,), {"norm": norm, "table": table})
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(PruningError, match=r"\bbn\b"):
        inspect(model, IMAGES[:, :1])
    with pytest.raises(PruningError, match=r"\bbn\b"):
        PruningProblem.create(model, digits)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
