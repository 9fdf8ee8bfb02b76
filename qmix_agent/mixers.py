"""From the agents' values to the team's.

Shapes: B episodes, T steps, N agents, S state features, E embedding, M values that are learned: 1 for a team, N where
each agent learns alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from .config import QMIXConfig
from .types import EnvSpec


class QMixer(nn.Module):
    """A monotonic mixing network whose weights are made from the state (Rashid et al. 2018, section 4.1).

    Q_tot = |w2(s)| . ELU(|W1(s)| q + b1(s)) + V(s), so that dQ_tot / dq_i >= 0 (equation 5): the joint argmax is each
    agent's own argmax. All hypernetworks but b1 have two layers.
    """

    def __init__(self, n_agents: int, n_state: int, embed: int, hypernet_hidden: int) -> None:
        super().__init__()
        self.n_agents, self.embed = n_agents, embed
        self.weights_1 = _hypernet(n_state, hypernet_hidden, n_agents * embed)
        self.bias_1 = nn.Linear(n_state, embed)
        self.weights_2 = _hypernet(n_state, hypernet_hidden, embed)
        self.value = _hypernet(n_state, embed, 1)

    def forward(self, q: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """q [B, T, N], states [B, T, S] -> Q_tot [B, T, 1]."""
        weights_1 = self.weights_1(states).abs().unflatten(-1, (self.n_agents, self.embed))  # [B, T, N, E]
        hidden = functional.elu((q.unsqueeze(-2) @ weights_1).squeeze(-2) + self.bias_1(states))  # [B, T, E]
        weights_2 = self.weights_2(states).abs()  # [B, T, E]
        return (hidden * weights_2).sum(dim=-1, keepdim=True) + self.value(states)


class VDNMixer(nn.Module):
    """The sum of the agents' values (Sunehag et al. 2018, arXiv:1706.05296)."""

    def forward(self, q: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """q [B, T, N] -> Q_tot [B, T, 1]."""
        return q.sum(dim=-1, keepdim=True)


class IQLMixer(nn.Module):
    """No mixing: each agent learns the team's return from its own values (Tan 1993)."""

    def forward(self, q: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """q [B, T, N] -> the same."""
        return q


MIXERS: dict[str, Callable[[EnvSpec, QMIXConfig], nn.Module]] = {
    "qmix": lambda spec, config: QMixer(spec.n_agents, spec.n_state, config.mixing_embed, config.hypernet_hidden),
    "vdn": lambda spec, config: VDNMixer(),
    "iql": lambda spec, config: IQLMixer(),
}


def make_mixer(spec: EnvSpec, config: QMIXConfig) -> nn.Module:
    """The mixer that `config.mixer` names."""
    return MIXERS[config.mixer](spec, config)


def _hypernet(n_inputs: int, hidden: int, n_outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(n_inputs, hidden), nn.ReLU(), nn.Linear(hidden, n_outputs))
