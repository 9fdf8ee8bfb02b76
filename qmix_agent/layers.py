"""Layers with separate weights for each agent.

Shapes: B episodes, T steps, N agents, H hidden features; `...` stands for any leading dimensions.
"""

from __future__ import annotations

import math

import torch
from torch import nn


class PerAgentLinear(nn.Module):
    """One linear layer for each of N agents, evaluated together."""

    def __init__(self, n_agents: int, n_inputs: int, n_outputs: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(n_inputs)  # the initialisation of nn.Linear
        self.weight = nn.Parameter(torch.empty(n_agents, n_inputs, n_outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(n_agents, n_outputs).uniform_(-bound, bound))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map [..., N, n_inputs] to [..., N, n_outputs]."""
        return torch.einsum("...ni,nio->...no", features, self.weight) + self.bias


class PerAgentGRU(nn.Module):
    """One gated recurrent unit for each of N agents (Cho et al. 2014, arXiv:1406.1078, in the form of torch.nn.GRU).

    r = sigmoid(W_r x + U_r h), z = sigmoid(W_z x + U_z h), n = tanh(W_n x + r (U_n h)), h' = (1 - z) n + z h.
    """

    def __init__(self, n_agents: int, size: int) -> None:
        super().__init__()
        self.from_input = PerAgentLinear(n_agents, size, 3 * size)  # W
        self.from_hidden = PerAgentLinear(n_agents, size, 3 * size)  # U

    def forward(self, inputs: torch.Tensor, hidden: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Run over all steps.

        Args:
            inputs: Features, [T, B, N, H].
            hidden: Hidden state before the first step, [B, N, H]; None for zeros.

        Returns:
            The hidden states after every step, [T, B, N, H], and the last of them, [B, N, H].
        """
        if hidden is None:
            hidden = torch.zeros_like(inputs[0])
        outputs = []
        for gates in self.from_input(inputs):  # [B, N, 3H]
            input_r, input_z, input_n = gates.chunk(3, dim=-1)
            hidden_r, hidden_z, hidden_n = self.from_hidden(hidden).chunk(3, dim=-1)
            reset, update = torch.sigmoid(input_r + hidden_r), torch.sigmoid(input_z + hidden_z)
            hidden = torch.lerp(torch.tanh(input_n + reset * hidden_n), hidden, update)
            outputs.append(hidden)
        return torch.stack(outputs), hidden
