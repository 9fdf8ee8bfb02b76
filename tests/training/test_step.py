"""One training step."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import torch
from torch import nn

from prune_env.training.step import Step, first_tensor

Outputs = namedtuple("Outputs", ["logits", "aux"])


def test_a_step_returns_the_loss_before_it_and_follows_the_learning_rate() -> None:
    model = nn.Linear(2, 1, bias=False)
    nn.init.ones_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=123.0)
    step = Step(model, lambda logits, images, labels: logits.sum(), {optimizer: 0.5}, torch.float32, True)
    images = torch.tensor([[1.0, 2.0]])
    step.set_learning_rates(0.5)
    assert float(step(images, torch.zeros(1))) == 3.0
    assert torch.allclose(model.weight, torch.tensor([[0.75, 0.5]]))
    step.set_learning_rates(0.0)
    assert float(step(images, torch.zeros(1))) == 1.75
    assert torch.allclose(model.weight, torch.tensor([[0.75, 0.5]]))


@pytest.mark.parametrize("pack", [lambda logits, aux: logits, Outputs, lambda *both: both, lambda *both: list(both)])
def test_the_first_tensor_of_an_output_are_the_logits(pack: Any) -> None:
    logits = torch.zeros(1, 2)
    assert first_tensor(pack(logits, torch.ones(1))) is logits


@pytest.mark.parametrize("output", [{"logits": torch.zeros(1)}, (), [None], None])
def test_other_outputs_are_refused(output: Any) -> None:
    with pytest.raises(TypeError, match=type(output).__name__):
        first_tensor(output)
