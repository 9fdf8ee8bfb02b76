"""Layers of the agents' network: with weights of their own for every agent, and with noise in their weights.

Shapes: B episodes, T steps, N agents, H hidden; `...` are any leading dimensions.
"""

from __future__ import annotations

import math

import torch
from torch import nn


class TeamLinear(nn.Module):
    """N linear layers, one for each agent, evaluated together."""

    def __init__(self, n_agents: int, n_inputs: int, n_outputs: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(n_inputs)  # as nn.Linear starts
        self.weight = nn.Parameter(torch.empty(n_agents, n_inputs, n_outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(n_agents, n_outputs).uniform_(-bound, bound))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[..., N, n_inputs] -> [..., N, n_outputs]."""
        return torch.einsum("...ni,nio->...no", features, self.weight) + self.bias


class TeamGRU(nn.Module):
    """N gated recurrent units, one for each agent (Cho et al. 2014, arXiv:1406.1078, in torch.nn.GRU's form).

    r = sigmoid(W_r x + U_r h), z = sigmoid(W_z x + U_z h), n = tanh(W_n x + r (U_n h)), h' = (1 - z) n + z h.
    """

    def __init__(self, n_agents: int, size: int) -> None:
        super().__init__()
        self.from_input = TeamLinear(n_agents, size, 3 * size)  # W
        self.from_hidden = TeamLinear(n_agents, size, 3 * size)  # U

    def forward(self, inputs: torch.Tensor, hidden: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs [T, B, N, H], memory [B, N, H] or None for zeros -> memories [T, B, N, H], the last of them."""
        if hidden is None:
            hidden = torch.zeros_like(inputs[0])
        memories = []
        for gates in self.from_input(inputs):  # [B, N, 3H]
            input_r, input_z, input_n = gates.chunk(3, dim=-1)
            hidden_r, hidden_z, hidden_n = self.from_hidden(hidden).chunk(3, dim=-1)
            reset, update = torch.sigmoid(input_r + hidden_r), torch.sigmoid(input_z + hidden_z)
            hidden = torch.lerp(torch.tanh(input_n + reset * hidden_n), hidden, update)
            memories.append(hidden)
        return torch.stack(memories), hidden


class NoisyLinear(nn.Module):
    """A linear layer whose weights are mean + sigma * noise (Fortunato et al. 2018, arXiv:1706.10295).

    The noise is factorised, f(e_out) f(e_in)^T with f(e) = sgn(e) sqrt|e| (their equations 10 and 11), and comes from
    outside: the layer holds no random state. As y = mean(x) + f(e_out) * sigma(f(e_in) * x), every episode and agent of
    a batch can have its own.
    """

    def __init__(self, mean: nn.Module, sigma: nn.Module, n_inputs: int, start: float) -> None:
        super().__init__()
        self.mean, self.sigma, self.n_inputs = mean, sigma, n_inputs
        for parameter in sigma.parameters():
            nn.init.constant_(parameter, start / math.sqrt(n_inputs))

    def forward(self, features: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
        """features [..., n_inputs], standard normal noise [..., n_inputs + n_outputs], or None for the mean alone."""
        values = self.mean(features)
        if noise is None:
            return values
        factors = noise.sign() * noise.abs().sqrt()
        return values + factors[..., self.n_inputs :] * self.sigma(features * factors[..., : self.n_inputs])
