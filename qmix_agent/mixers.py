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

    Q_tot = w2(s) . ELU(W1(s) q + b1(s)) + V(s) with W1 and w2 not negative, so that dQ_tot / dq_i >= 0 (equation 5):
    the joint argmax is each agent's own argmax. The hypernetworks of W1 and w2 have one or two layers, b1's one, V's
    two. W1 and w2 are made non-negative by abs, as in the paper, or by softplus.
    """

    def __init__(
        self,
        n_agents: int,
        n_state: int,
        embed: int,
        hypernet_hidden: int,
        hypernet_layers: int = 2,
        mixing_weights: str = "abs",
    ) -> None:
        super().__init__()
        self.n_agents, self.embed = n_agents, embed

        def hypernet(n_outputs: int) -> nn.Module:
            if hypernet_layers == 1:
                return nn.Linear(n_state, n_outputs)
            return _two_layers(n_state, hypernet_hidden, n_outputs)

        self.softplus = mixing_weights == "softplus"
        self.weights_1 = hypernet(n_agents * embed)
        self.bias_1 = nn.Linear(n_state, embed)
        self.weights_2 = hypernet(embed)
        self.value = _two_layers(n_state, embed, 1)

    def forward(self, q: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """q [..., B, T, N], states [B, T, S] -> Q_tot [..., B, T, 1]. Many q share their states' weights."""
        rows = states.reshape(-1, states.shape[-1])  # [B*T, S]: contiguous once, not in every hypernetwork
        moments = states.shape[:-1]
        weights_1 = self._non_negative(self.weights_1(rows)).view(*moments, self.n_agents, self.embed)
        # A product and a sum: faster on a processor than B*T tiny matrix products.
        mixed = (q.unsqueeze(-1) * weights_1).sum(dim=-2)  # [..., B, T, E]
        hidden = functional.elu(mixed + self.bias_1(rows).view(*moments, self.embed))
        weights_2 = self._non_negative(self.weights_2(rows)).view(*moments, self.embed)
        return (hidden * weights_2).sum(dim=-1, keepdim=True) + self.value(rows).view(*moments, 1)

    def _non_negative(self, weights: torch.Tensor) -> torch.Tensor:
        return functional.softplus(weights) if self.softplus else weights.abs()


class VDNMixer(nn.Module):
    """The sum of the agents' values (Sunehag et al. 2018, arXiv:1706.05296)."""

    def forward(self, q: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """q [..., N] -> Q_tot [..., 1]."""
        return q.sum(dim=-1, keepdim=True)


class IQLMixer(nn.Module):
    """No mixing: each agent learns the team's return from its own values (Tan 1993)."""

    def forward(self, q: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """q [..., N] -> the same."""
        return q


MIXERS: dict[str, Callable[[EnvSpec, QMIXConfig], nn.Module]] = {
    "qmix": lambda spec, config: QMixer(
        spec.n_agents,
        spec.n_state,
        config.mixing_embed,
        config.hypernet_hidden,
        config.hypernet_layers,
        config.mixing_weights,
    ),
    "vdn": lambda spec, config: VDNMixer(),
    "iql": lambda spec, config: IQLMixer(),
}


def make_mixer(spec: EnvSpec, config: QMIXConfig) -> nn.Module:
    """The mixer that `config.mixer` names."""
    return MIXERS[config.mixer](spec, config)


def _two_layers(n_inputs: int, hidden: int, n_outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(n_inputs, hidden), nn.ReLU(), nn.Linear(hidden, n_outputs))
